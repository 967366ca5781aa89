"""How much of large messages is on its way to the clients of one socket at once.

gRPC keeps a copy of a message for each stream until its client has made room for it: of a
megabyte for a thousand clients, a gigabyte at each renewal. Nobody is kept waiting by a
client that does not read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["Turns"]


class Turns:
    """Gives turns to write, first come, first served.

    Args:
        at_once: How many large messages.
        large: From so many bytes on a message is large; any number of others goes out at once.
        patience: After so many seconds another has its turn as well.
    """

    def __init__(
        self, at_once: int = 16, *, large: int = 128 * 1024, patience: float = 0.5
    ) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._large = large
        self._patience = patience

    @contextlib.asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """A turn to write a message of so many bytes; it may last as long as it takes."""
        if size < self._large:
            yield
            return
        await self._free.acquire()
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._free.release()

        timer = asyncio.get_running_loop().call_later(self._patience, end)
        try:
            yield
        finally:
            timer.cancel()
            end()
