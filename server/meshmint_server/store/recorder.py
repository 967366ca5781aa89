"""Group commit: many callers' records in one transaction, each released when it is durable.

A row is committed before its caller goes on, or the caller gets an error; there
is no third way. One task commits, so that what arrives during one commit waits
for the next and shares it: throughput does not hang on the disk's latency.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from meshmint_server.errors import MeshmintError, Overloaded, StoreUnavailable
from meshmint_server.store.database import RowRefused
from meshmint_server.store.rows import RecordRow

__all__ = ["Recorder"]

Commit = Callable[[Sequence[RecordRow]], Awaitable[Collection[str]]]
Observer = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    row: RecordRow
    outcome: asyncio.Future[bool]
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
        self._max_batch = max_batch
        self._time_limit = time_limit
        self._observe = observe
        self._queue: deque[_Waiting] = deque()
        self._batch: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    @property
    def waiting(self) -> int:
        """Rows that no transaction has taken yet."""
        return len(self._queue)

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
        if len(self._queue) >= self._max_waiting:
            raise Overloaded("Too many certificates wait to be recorded. Try again shortly.")
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[bool] = loop.create_future()
        ends = loop.time() + self._time_limit
        self._queue.append(_Waiting(row, outcome, ends))
        self._filled.set()
        if self._timer is None:
            self._timer = loop.call_at(ends, self._expire)
        if self._task is None:
            self._start()
        return await outcome

    async def close(self) -> None:
        """Commits what waits, then stops. Later rows are refused."""
        self._is_closing = True
        self._filled.set()
        while self._task is not None:
            await asyncio.wait((self._task,))
        if self._timer is not None:
            self._timer.cancel()

    def _start(self) -> None:
        self._task = asyncio.create_task(self._work(), name="store-recorder")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever it has ended of, those who came meanwhile are not left waiting."""
        self._task = None
        if task.cancelled():
            waiting, self._queue = list(self._queue), deque()
            _fail(waiting, StoreUnavailable("The store does not answer at present."))
            return
        if (bug := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "bug: records were not committed", "exception": bug, "task": task}
            )
        if self._queue:
            self._start()

    def _expire(self) -> None:
        """Fails those whose time is over. One timer for all: they came in the order they end."""
        loop = asyncio.get_running_loop()
        self._timer = None
        for waiting in (*self._batch, *self._queue):
            if waiting.outcome.done():
                continue
            if waiting.ends > loop.time():
                self._timer = loop.call_at(waiting.ends, self._expire)
                return
            _fail(
                [waiting], StoreUnavailable("The store is too slow at present. Try again shortly.")
            )

    async def _work(self) -> None:
        while True:
            if not self._queue:
                if self._is_closing:
                    return
                self._filled.clear()
                await self._filled.wait()
                continue
            self._batch = self._take()
            try:
                await self._settle(self._batch)
            finally:
                # A bug or a cancelled task must not leave callers waiting.
                _fail(self._batch, StoreUnavailable("The store does not answer at present."))
                self._batch = []

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if not waiting.outcome.done():  # cancelled or timed out: nobody asks any more
                batch.append(waiting)
        return batch

    async def _settle(self, batch: list[_Waiting]) -> None:
        if not batch:
            return
        started = time.perf_counter()
        try:
            outrun = await self._commit([waiting.row for waiting in batch])
        except RowRefused:
            if len(batch) == 1:
                _fail(batch, _refused())
                return
            # The innocent must not fail with the guilty: halves, until it stands alone.
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])
        except StoreUnavailable as fault:
            _fail(batch, fault)
        else:
            if self._observe is not None:
                self._observe(len(batch), time.perf_counter() - started)
            for waiting in batch:
                if not waiting.outcome.done():
                    waiting.outcome.set_result(waiting.row.serial_number not in outrun)


def _refused() -> StoreUnavailable:
    return StoreUnavailable(
        "The certificate could not be recorded, and was not handed out. Try again.",
        reason="RECORD_REFUSED",
    )


def _fail(batch: list[_Waiting], fault: MeshmintError) -> None:
    for waiting in batch:
        if not waiting.outcome.done():
            # One object each: a traceback grows on the exception that is raised.
            error = type(fault)(fault.message, reason=fault.reason, retry_after=fault.retry_after)
            waiting.outcome.set_exception(error)
