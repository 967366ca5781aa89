"""One reaction, tried as often as it says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence

from meshmint.agent.reactions.change import Change
from meshmint.agent.reactions.command import run_command
from meshmint.agent.reactions.failure import AttemptFailed, ReactionFailure
from meshmint.agent.reactions.http_call import call_http
from meshmint.agent.reactions.settings import CommandReaction, HttpReaction, Reaction
from meshmint.agent.reactions.signalling import send_signal

__all__ = ["attempt", "react", "tried"]

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0


async def attempt(reaction: Reaction, changes: Sequence[Change]) -> None:
    """Does it once.

    Raises:
        AttemptFailed: It has failed.
    """
    if isinstance(reaction, CommandReaction):
        await run_command(reaction, changes)
    elif isinstance(reaction, HttpReaction):
        await call_http(reaction)
    else:
        await asyncio.to_thread(send_signal, reaction)


async def tried(reaction: Reaction, changes: Sequence[Change]) -> ReactionFailure | None:
    """Does it, as often as it says, with growing pauses; None if it has succeeded."""
    text = said = ""
    for number in range(reaction.attempts):
        if number:
            longest = min(_FIRST_PAUSE_SECONDS * 2**number, _LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(random.uniform(0, longest))  # noqa: S311 - only spreads load
        try:
            await attempt(reaction, changes)
        except AttemptFailed as failed:
            text, said = str(failed), failed.said
        else:
            return None
    names = tuple(change.name for change in changes)
    return ReactionFailure(reaction, names, reaction.attempts, text, said)


async def react(reactions: Iterable[Reaction], change: Change) -> list[ReactionFailure]:
    """Does all of them for one change, side by side; gives back those that have failed."""
    outcomes = await asyncio.gather(*(tried(one, (change,)) for one in reactions))
    return [failure for failure in outcomes if failure is not None]
