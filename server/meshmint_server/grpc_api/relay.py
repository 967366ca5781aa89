"""TLS for clients that offer no ALPN, as Linkerd's proxies do.

gRPC's own TLS ends every connection on which no protocol was agreed. Here TLS is taken off,
and what is inside goes on as it is, over a unix socket that only this process can reach, to
the same gRPC listener. Nothing of it is read, and who may do what is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

__all__ = ["Relay"]

log = structlog.get_logger(__name__)

# Beyond that nobody new is let in: each takes three file descriptors.
MOST_CONNECTIONS = 10_000
HANDSHAKE_SECONDS = 10.0
FINISH_SECONDS = 10.0
_PART_BYTES = 64 * 1024


class Relay:
    """Clients of one worker that come over TLS without ALPN.

    Args:
        directory: For its sockets; nobody else may enter it.
        most: How many may be connected at a time.

    Attributes:
        peers: Whom gRPC's peers really are, by how gRPC calls them.
    """

    def __init__(self, directory: Path, most: int = MOST_CONNECTIONS) -> None:
        self.peers: dict[str, str] = {}
        self._most = most
        self._numbers = itertools.count()
        self._open: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._socket = directory / "grpc"

    @property
    def address(self) -> str:
        """Where the gRPC listener is to listen, without TLS."""
        return f"unix:{self._socket}"

    @asynccontextmanager
    async def serve(self, bound: socket.socket, tls: ssl.SSLContext) -> AsyncIterator[None]:
        """Lets clients in until the end, when those that are left are let go."""
        self._server = await asyncio.start_server(
            self._let_in,
            sock=bound,
            ssl=tls,
            ssl_handshake_timeout=HANDSHAKE_SECONDS,
            limit=_PART_BYTES,
        )
        try:
            yield
        finally:
            self.close()
            for task in self._open:
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)

    def close(self) -> None:
        """Lets nobody new in."""
        if self._server is not None:
            self._server.close()

    async def _let_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._open) >= self._most:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # Either side is gone, or the worker is about to be.
        except Exception as error:
            log.error("bug: unexpected error in the relay", exc_info=error)
        finally:
            self._open.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._connected(writer.get_extra_info("peername")) as (inner, outer):
            tasks = [
                asyncio.create_task(_copy(reader, outer)),
                asyncio.create_task(_copy(inner, writer)),
            ]
            try:
                # TLS has no half of a connection: when one direction ends, all of it does, but
                # for what was said already.
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(_finish(writer), _finish(outer))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def _connected(
        self, peer: tuple[str, int]
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection to the gRPC listener, which knows it by a name of its own."""
        name = f"{self._socket}-{next(self._numbers)}"
        known_as = f"unix:{name}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as plain:
            plain.setblocking(False)
            plain.bind(name)
            try:
                await asyncio.get_running_loop().sock_connect(plain, str(self._socket))
            finally:
                os.unlink(name)
            self.peers[known_as] = _spelled(peer)
            try:
                reader, writer = await asyncio.open_unix_connection(
                    sock=plain.dup(), limit=_PART_BYTES
                )
                try:
                    yield reader, writer
                finally:
                    writer.transport.abort()
            finally:
                del self.peers[known_as]


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until the end, no faster than what is copied can leave."""
    with contextlib.suppress(OSError):
        while part := await reader.read(_PART_BYTES):
            writer.write(part)
            await writer.drain()


async def _finish(writer: asyncio.StreamWriter) -> None:
    """Closes a side once all has left that was written to it, or it takes too long."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(FINISH_SECONDS):
            await writer.wait_closed()


def _spelled(peer: tuple[str, int]) -> str:
    """An address as gRPC spells it."""
    host, port = peer[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
