"""The way to a service that loses its answers: TCP, TLS goes through untouched."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["SwallowingProxy"]


class SwallowingProxy:
    """Passes connections on.

    Attributes:
        swallows: Whether what comes back is thrown away.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self.swallows = False
        self._target = host, int(port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    @classmethod
    @asynccontextmanager
    async def before(cls, target: str) -> AsyncIterator[SwallowingProxy]:
        """Runs one before a ``host:port``."""
        proxy = cls(target)
        proxy._server = await asyncio.start_server(proxy._serve, "127.0.0.1", 0)
        try:
            yield proxy
        finally:
            proxy._server.close()
            await proxy.cut()

    @property
    def address(self) -> str:
        """``host:port`` to connect to."""
        assert self._server
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def cut(self) -> None:
        """Ends every connection."""
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        both = {writer, there_writer}
        self._open |= both
        ways = {
            asyncio.create_task(self._pass(reader, there_writer, is_answer=False)),
            asyncio.create_task(self._pass(there_reader, writer, is_answer=True)),
        }
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self._open -= both
        for one in both:
            one.transport.abort()
        # Without its connections the other way ends, too.
        await asyncio.gather(*ways, return_exceptions=True)
        for one in both:
            with contextlib.suppress(OSError):
                await one.wait_closed()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        while chunk := await reader.read(65536):
            if not (is_answer and self.swallows):
                writer.write(chunk)
                await writer.drain()
