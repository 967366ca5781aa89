"""Where every RPC comes in, and where it waits while the listener closes.

When a gRPC server stops, it ends with CANCELLED whatever it has read from a connection
and not handed to us yet (grpc/grpc#41785): under load that is nearly all there is. So
for that moment RPCs are held here, and the event loop does nothing but take them; held,
they are in flight, and are answered once the listener has closed. An RPC that is still
on its way then is lost to gRPC, not to us: it must be sent again, as UNAVAILABLE is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Entrance"]

# An RPC is taken in several turns of the event loop, and by another thread before: so many
# looks in a row, each a turn at least, must find that none has come.
_LOOKS = 10
_PAUSE_SECONDS = 0.005
# Where requests arrive without a pause, few wait at any time.
_LONGEST_SECONDS = 2.0


class Entrance:
    """Counts RPCs as they come in, and can hold them."""

    def __init__(self) -> None:
        self._came_in = 0
        self._is_open = asyncio.Event()
        self._is_open.set()

    async def enter(self) -> None:
        """Returns when the RPC may be worked on: at once, unless the listener is closing."""
        self._came_in += 1
        await self._is_open.wait()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Holds what comes in; the block begins once nothing more does."""
        self._is_open.clear()
        try:
            await self._quiet()
            yield
        finally:
            self._is_open.set()

    async def _quiet(self) -> None:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _LONGEST_SECONDS
        seen, looks = self._came_in, 0
        while looks < _LOOKS and loop.time() < give_up_at:
            await asyncio.sleep(_PAUSE_SECONDS)
            looks = looks + 1 if self._came_in == seen else 0
            seen = self._came_in
