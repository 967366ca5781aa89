"""Group commit: many callers' records in one transaction, each released when it is durable.

A row is committed before its caller goes on, or the caller gets an error; there
is no third way. One task commits, so that what arrives during one commit waits
for the next and shares it: throughput does not hang on the disk's latency.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from meshmint_server.errors import Overloaded, StoreUnavailable
from meshmint_server.store.batcher import Asked, Batcher, fail
from meshmint_server.store.database import RowRefused
from meshmint_server.store.rows import RecordRow

__all__ = ["Recorder"]

Commit = Callable[[Sequence[RecordRow]], Awaitable[Collection[str]]]
Observer = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row, and when its caller has waited for long enough; seconds of the event loop's clock."""

    row: RecordRow
    ends: float


class Recorder:
    """Commits rows in batches.

    Args:
        commit: Commits some rows in one transaction and returns the serial numbers of
            those that another one with the same reply was before; raises RowRefused
            when the content of one of them is why none was taken.
        max_waiting: How many rows may wait before new ones are turned away.
        max_batch: How many rows go into one transaction.
        time_limit: Seconds that one caller waits at most.
        observe: Told the size of each committed batch, and the seconds it took.
    """

    def __init__(
        self,
        commit: Commit,
        *,
        max_waiting: int = 16_384,
        max_batch: int = 512,
        time_limit: float = 20.0,
        observe: Observer | None = None,
    ) -> None:
        self._commit = commit
        self._max_waiting = max_waiting
        self._time_limit = time_limit
        self._observe = observe
        self._batcher: Batcher[_Entry, bool] = Batcher(
            "store-recorder", self._settle, most=max_batch
        )
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False

    @property
    def waiting(self) -> int:
        """Rows that no transaction has taken yet."""
        return self._batcher.waiting

    async def record(self, row: RecordRow) -> bool:
        """Returns once `row` is durable.

        Returns:
            False, and nothing was recorded, if another row with the tag of its reply was.

        A caller that is cancelled leaves the queue if its row is not being
        committed yet; otherwise the row stays, of a certificate nobody got.

        Raises:
            Overloaded: Too many rows wait.
            StoreUnavailable: It was not recorded, or nobody can tell in time.
        """
        if self._is_closing:
            raise StoreUnavailable("The service is shutting down. Try again shortly.")
        if self._batcher.waiting >= self._max_waiting:
            raise Overloaded("Too many certificates wait to be recorded. Try again shortly.")
        loop = asyncio.get_running_loop()
        ends = loop.time() + self._time_limit
        if self._timer is None:
            self._timer = loop.call_at(ends, self._expire)
        return await self._batcher.ask(_Entry(row, ends))

    async def close(self) -> None:
        """Commits what waits, then stops. Later rows are refused."""
        self._is_closing = True
        await self._batcher.drain()
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        """Fails those whose time is over. One timer for all: they came in the order they end."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for asked in self._batcher.unsettled():
            if asked.answer.done():
                continue
            if asked.question.ends > loop.time():
                self._timer = loop.call_at(asked.question.ends, self._expire)
                return
            fail([asked], StoreUnavailable("The store is too slow at present. Try again shortly."))

    async def _settle(self, batch: Sequence[Asked[_Entry, bool]]) -> None:
        started = time.perf_counter()
        try:
            outrun = await self._commit([asked.question.row for asked in batch])
        except RowRefused:
            if len(batch) == 1:
                fail(batch, _refused())
                return
            # The innocent must not fail with the guilty: halves, until it stands alone.
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])
        except StoreUnavailable as fault:
            fail(batch, fault)
        else:
            if self._observe is not None:
                self._observe(len(batch), time.perf_counter() - started)
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_result(asked.question.row.serial_number not in outrun)


def _refused() -> StoreUnavailable:
    return StoreUnavailable(
        "The certificate could not be recorded, and was not handed out. Try again.",
        reason="RECORD_REFUSED",
    )
