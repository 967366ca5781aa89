"""Many callers' questions settled together: what arrives during one batch goes with the next.

Whatever becomes of a batch, none of its callers is left waiting, and neither is anybody
who came meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from meshmint_server.errors import MeshmintError, StoreUnavailable

__all__ = ["Asked", "Batcher", "fail"]

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Asked(Generic[Question, Answer]):
    """What somebody wants to know.

    Attributes:
        question: What is asked.
        answer: Where the caller waits; done if it waits no more.
    """

    question: Question
    answer: asyncio.Future[Answer]


class Batcher(Generic[Question, Answer]):
    """One task settles one batch after the other, as long as there are any.

    Args:
        name: Of the task.
        settle: Answers a batch; what it leaves without an answer fails.
        most: How many go into one batch.
    """

    def __init__(
        self,
        name: str,
        settle: Callable[[Sequence[Asked[Question, Answer]]], Awaitable[None]],
        *,
        most: int,
    ) -> None:
        self._name = name
        self._settle = settle
        self._most = most
        self._queue: deque[Asked[Question, Answer]] = deque()
        self._batch: Sequence[Asked[Question, Answer]] = ()
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """How many no batch has taken yet."""
        return len(self._queue)

    def unsettled(self) -> Iterator[Asked[Question, Answer]]:
        """Those of the present batch, and those that wait, in the order they came."""
        yield from self._batch
        yield from self._queue

    def ask(self, question: Question) -> asyncio.Future[Answer]:
        """Puts it into the next batch, which begins in the next turn of the event loop or later."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._queue.append(Asked(question, answer))
        if self._task is None:
            self._start()
        return answer

    async def drain(self) -> None:
        """Returns when everything is settled."""
        while self._task is not None:
            await asyncio.wait((self._task,))

    def _start(self) -> None:
        self._task = asyncio.create_task(self._work(), name=self._name)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            waiting, self._queue = self._queue, deque()
            fail(waiting, _no_answer())
            return
        if (bug := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": f"bug: the {self._name} failed", "exception": bug, "task": task}
            )
        if self._queue:
            self._start()

    async def _work(self) -> None:
        while self._queue:
            self._batch = batch = self._take()
            try:
                if batch:
                    await self._settle(batch)
            finally:
                fail(batch, _no_answer())
                self._batch = ()

    def _take(self) -> Sequence[Asked[Question, Answer]]:
        batch: list[Asked[Question, Answer]] = []
        while self._queue and len(batch) < self._most:
            asked = self._queue.popleft()
            if not asked.answer.done():  # cancelled or timed out: nobody asks any more
                batch.append(asked)
        return batch


def fail(asked: Iterable[Asked[Question, Answer]], fault: MeshmintError) -> None:
    """Tells those who wait yet."""
    for one in asked:
        if not one.answer.done():
            # One object each: a traceback grows on the exception that is raised.
            one.answer.set_exception(
                type(fault)(fault.message, reason=fault.reason, retry_after=fault.retry_after)
            )


def _no_answer() -> StoreUnavailable:
    return StoreUnavailable("The store does not answer at present.")
