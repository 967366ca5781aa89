"""Tasks that go on for ever, whatever happens to them, and their ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from meshmint.agent.log import Log

__all__ = ["begin", "end"]

_AFTER_A_BUG = 5.0


def begin(what: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    """Begins something that is begun again should it ever end; a fault of its is logged."""
    return asyncio.create_task(_again_and_again(what, work))


async def _again_and_again(what: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:  # noqa: BLE001 - the outermost edge: a bug in one part ends no other
            Log().bug("a bug in the agent; this part of it begins again", part=what)
        await asyncio.sleep(_AFTER_A_BUG)


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Ends tasks, and waits for their ends."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
