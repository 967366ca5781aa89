"""One piece of work for all who wait for the same answer at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Generic, TypeVar

__all__ = ["SingleFlight"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class SingleFlight(Generic[K, T]):
    """Joins concurrent calls of one key.

    The work is a task of its own: a caller that gives up takes no other caller
    down with it. The work must therefore end by itself, by a time-out.
    """

    def __init__(self) -> None:
        self._flights: dict[K, asyncio.Task[T]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: K) -> bool:
        return key in self._flights

    def join(self, key: K, work: Callable[[], Coroutine[None, None, T]]) -> asyncio.Task[T]:
        """The running task of this key, or a new one."""
        task = self._flights.get(key)
        if task is None:
            task = asyncio.create_task(work())
            self._flights[key] = task
            task.add_done_callback(partial(self._land, key))
        return task

    async def run(self, key: K, work: Callable[[], Coroutine[None, None, T]]) -> T:
        """Awaits the work of this key, starting it if need be."""
        return await asyncio.shield(self.join(key, work))

    async def close(self) -> None:
        """Cancels all work and waits for it to end."""
        flights = list(self._flights.values())
        for task in flights:
            task.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    def _land(self, key: K, task: asyncio.Task[T]) -> None:
        del self._flights[key]
        if not task.cancelled():
            task.exception()  # Marked as seen, for when every waiter has gone.
