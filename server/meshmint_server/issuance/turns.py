"""A few at a time, the others in line, and no line without an end.

For work that many may ask for at once and that shares something scarce with issuing:
it must never hold so much of it that a certificate has to wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from meshmint_server.errors import Overloaded

__all__ = ["Turns"]

T = TypeVar("T")


class Turns:
    """Gives turns in the order in which they were asked for.

    Args:
        at_once: How many have their turn at the same time.
        most_waiting: How many may wait for theirs.
    """

    def __init__(self, at_once: int, most_waiting: int) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._most_waiting = most_waiting
        self._waiting = 0

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does `work` when its turn comes.

        Whoever hangs up in the line leaves it. Later, the work is done to its end all the
        same, and has its turn for as long: hanging up is no way to have more than one's share.

        Raises:
            Overloaded: Too many wait.
        """
        if self._waiting >= self._most_waiting:
            raise Overloaded("Too many requests of this kind are waiting. Try again shortly.")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        return await asyncio.shield(self._finish(work))

    async def _finish(self, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        finally:
            self._free.release()
