"""Sees to it that every change is reacted to: beside the renewals, and until it has succeeded.

Changes that come together are told to a reaction together, and a newer change of a
certificate takes the place of an older one that is still due.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from meshmint.agent.outputs import OutputError
from meshmint.agent.reactions.attempts import tried
from meshmint.agent.reactions.change import Change
from meshmint.agent.reactions.failure import ReactionFailure
from meshmint.agent.reactions.ledger import Ledger
from meshmint.agent.reactions.settings import Reaction

__all__ = ["Reactor"]

_log = logging.getLogger(__name__)
_AT_ONCE = 8
_LONGEST_PAUSE_SECONDS = 300.0


@dataclass(slots=True, eq=False)
class _Work:
    """What is due for one reaction."""

    reaction: Reaction
    changes: dict[str, Change] = field(default_factory=dict)
    failure: ReactionFailure | None = None
    newer: asyncio.Event = field(default_factory=asyncio.Event)
    # Whether all that is due has been tried.
    settled: asyncio.Event = field(default_factory=asyncio.Event)


class Reactor:
    """Does what is due, for one event loop; as an asynchronous context manager.

    Leaving it ends what is being done; what is then still due is found out by the ledger
    at the next start.

    Args:
        ledger: What was done before.
        report: Called with every failure, when it happens; must not block or raise.
        gather_seconds: How long changes are waited for that come together.
        pause_seconds: The first pause after a failure, at most; it doubles each time.
    """

    def __init__(
        self,
        ledger: Ledger,
        report: Callable[[ReactionFailure], None],
        *,
        gather_seconds: float = 1.0,
        pause_seconds: float = 5.0,
    ) -> None:
        self._ledger = ledger
        self._report = report
        self._gather_seconds = gather_seconds
        self._pause_seconds = pause_seconds
        self._works: dict[str, _Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._recording = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failures(self) -> list[ReactionFailure]:
        """The reactions that have failed, and are tried again."""
        return [work.failure for work in self._works.values() if work.failure is not None]

    def due(self, reactions: Iterable[Reaction], change: Change, *, changed: bool) -> None:
        """Has a change reacted to; returns at once.

        Call it after every writing of outputs, also one that had nothing to change: a
        reaction that was not done for this version yet is due all the same.

        Args:
            reactions: Those of the certificate.
            change: Its outputs as they are now.
            changed: Whether anything was written just now.
        """
        for reaction in reactions:
            key = reaction.key
            if not changed and (self._is_due(key, change) or self._ledger.is_done(key, change)):
                continue
            if key not in self._works:
                self._works[key] = _Work(reaction)
                task = asyncio.create_task(self._see_to(key, self._works[key]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            work = self._works[key]
            work.changes[change.name] = change
            work.newer.set()
            work.settled.clear()

    async def settle(self) -> list[ReactionFailure]:
        """Waits until all that is due was tried, and gives back what has failed."""
        await asyncio.gather(*(work.settled.wait() for work in list(self._works.values())))
        return self.failures

    def _is_due(self, key: str, change: Change) -> bool:
        work = self._works.get(key)
        return work is not None and work.changes.get(change.name) == change

    async def _see_to(self, key: str, work: _Work) -> None:
        failed = 0
        while work.changes:
            if work.newer.is_set():
                await asyncio.sleep(self._gather_seconds)
                failed = 0
            work.newer.clear()
            taken = dict(work.changes)
            work.failure = await self._try(work.reaction, tuple(taken.values()))
            if work.failure is None:
                _log.info("%s was done after a change of %s", work.reaction, ", ".join(taken))
                for name, change in taken.items():
                    if work.changes[name] is change:
                        del work.changes[name]
                await self._record(key, work.reaction, taken.values())
                continue
            self._report(work.failure)
            if not work.newer.is_set():
                work.settled.set()
            failed += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause(failed)):
                    await work.newer.wait()
        del self._works[key]
        work.settled.set()

    async def _try(self, reaction: Reaction, changes: tuple[Change, ...]) -> ReactionFailure | None:
        async with self._slots:
            try:
                return await tried(reaction, changes)
            except Exception as error:  # noqa: BLE001
                # The outermost edge of a task: a bug in here must not lose the reaction.
                _log.exception("a reaction could not be tried")
                names = tuple(change.name for change in changes)
                text = f"a bug of the agent, {type(error).__name__}; its log has more"
                return ReactionFailure(reaction, names, 1, text)

    async def _record(self, key: str, reaction: Reaction, changes: Iterable[Change]) -> None:
        noted = tuple(changes)
        self._ledger.note(key, noted)
        async with self._recording:
            try:
                await asyncio.to_thread(self._ledger.keep)
            except OutputError as error:
                names = tuple(change.name for change in noted)
                text = f"it has succeeded, but a restart will not know that: {error}"
                self._report(ReactionFailure(reaction, names, 1, text))

    def _pause(self, failed: int) -> float:
        longest = min(self._pause_seconds * 2 ** min(failed - 1, 20), _LONGEST_PAUSE_SECONDS)
        return random.uniform(0, longest)  # noqa: S311 - only spreads load
