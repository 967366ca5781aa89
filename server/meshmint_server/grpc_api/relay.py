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
import resource
import socket
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import structlog

__all__ = ["Relay"]

log = structlog.get_logger(__name__)

MOST_CONNECTIONS = 10_000
# Of a connection: the client's, ours to gRPC, and gRPC's to us.
_DESCRIPTORS = 3
_BACKLOG = 4096
HANDSHAKE_SECONDS = 10.0
# Where there is no place left, whoever has been silent for so long makes room.
PATIENCE_SECONDS = 10.0
# gRPC gives a client up from whom no ping comes back within this.
STALLED_SECONDS = 80.0
FINISH_SECONDS = 10.0
_PART_BYTES = 64 * 1024
_COMPLAIN_SECONDS = 60.0
_ACCEPT_REST_SECONDS = 0.1
# The longest path of a unix socket (unix(7)), and the end of its name here.
_LONGEST_PATH = 107
_LONGEST_NUMBER = 1 << 40


class Relay:
    """Clients of one worker that come over TLS without ALPN.

    Args:
        directory: For its sockets; nobody else may enter it.
        most: How many may be connected at a time, those in their handshake included; in any
            case they take no more than half of the file descriptors that there may be.

    Attributes:
        peers: Whom gRPC's peers really are, by how gRPC calls them.
    """

    def __init__(self, directory: Path, most: int = MOST_CONNECTIONS) -> None:
        self.peers: dict[str, str] = {}
        self._most = most
        self._numbers = itertools.count()
        # When each was last heard, whoever has been silent for longest first.
        self._open: OrderedDict[asyncio.Task[None], float] = OrderedDict()
        self._accepting: asyncio.Task[None] | None = None
        self._complains_from = 0.0
        self._socket = directory / "grpc"

    @property
    def address(self) -> str:
        """Where the gRPC listener is to listen, without TLS."""
        return _uri(str(self._socket))

    @asynccontextmanager
    async def serve(self, bound: socket.socket, tls: ssl.SSLContext) -> AsyncIterator[None]:
        """Lets clients in until the end, when those that are left are let go.

        Raises:
            OSError: It cannot, where it is.
        """
        if len(os.fsencode(self._name(_LONGEST_NUMBER))) > _LONGEST_PATH:
            bound.close()
            raise OSError(
                f"{self._socket.parent} is too long a path for the sockets in it: set TMPDIR to a "
                "shorter one"
            )
        most_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most_files != resource.RLIM_INFINITY:
            # gRPC's own port, the store and the HTTP port need some as well.
            self._most = max(1, min(self._most, most_files // (2 * _DESCRIPTORS)))
        bound.setblocking(False)
        bound.listen(_BACKLOG)
        self._accepting = asyncio.create_task(self._accept(bound, tls))
        try:
            yield
        finally:
            self.close()
            tasks = [self._accepting, *self._open]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            bound.close()

    def close(self) -> None:
        """Lets nobody new in."""
        if self._accepting is not None:
            self._accepting.cancel()

    async def _accept(self, bound: socket.socket, tls: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, _ = await loop.sock_accept(bound)
                except OSError as error:  # no file descriptor, for one
                    self._complain("clients cannot be let in", problem=str(error))
                    await asyncio.sleep(_ACCEPT_REST_SECONDS)
                    continue
                if not self._has_room(loop.time()):
                    connection.close()
                    continue
                task = loop.create_task(self._let_in(connection, tls))
                self._open[task] = loop.time()
                await asyncio.sleep(0)  # many at once keep nobody else waiting
        finally:
            bound.close()

    def _has_room(self, now: float) -> bool:
        """Whether one more may be let in, for which another may have to go."""
        if len(self._open) < self._most:
            return True
        self._complain("as many clients are connected as may be", connections=self._most)
        silent, heard_at = next(iter(self._open.items()))
        if now - heard_at < PATIENCE_SECONDS:
            return False
        del self._open[silent]
        silent.cancel()
        return True

    def _complain(self, what: str, **details: object) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._complains_from:
            self._complains_from = now + _COMPLAIN_SECONDS
            log.warning(f"the listener for Linkerd's proxies: {what}", **details)

    async def _let_in(self, connection: socket.socket, tls: ssl.SSLContext) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a coroutine that runs has one

        def note() -> None:
            if task in self._open:
                self._open[task] = task.get_loop().time()
                self._open.move_to_end(task)

        try:
            peer = connection.getpeername()
            reader, writer = await _secured(connection, tls)
            try:
                await self._relay(reader, writer, peer, note)
            finally:
                writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # Either side is gone, or makes room, or the worker is about to be gone.
        except Exception as error:
            log.error("bug: unexpected error in the relay", exc_info=error)
        finally:
            self._open.pop(task, None)
            connection.close()

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: tuple[str, int],
        note: Callable[[], None],
    ) -> None:
        async with self._connected(peer) as (inner, outer):
            tasks = [
                asyncio.create_task(_copy(reader, outer, note)),
                asyncio.create_task(_copy(inner, writer, note)),
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
        name = self._name(next(self._numbers))
        known_as = _uri(name)
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            plain.setblocking(False)
            plain.bind(name)
            try:
                await asyncio.get_running_loop().sock_connect(plain, str(self._socket))
            finally:
                os.unlink(name)
            self.peers[known_as] = _spelled(peer)
            stack.callback(self.peers.pop, known_as)
            reader, writer = await asyncio.open_unix_connection(sock=plain, limit=_PART_BYTES)
            stack.callback(writer.transport.abort)
            yield reader, writer

    def _name(self, number: int) -> str:
        return f"{self._socket}-{number}"


async def _secured(
    connection: socket.socket, tls: ssl.SSLContext
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The connection after the handshake of TLS; OSError if that fails or takes too long."""
    loop = asyncio.get_running_loop()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    reader = asyncio.StreamReader(limit=_PART_BYTES, loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, connection, ssl=tls, ssl_handshake_timeout=HANDSHAKE_SECONDS
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _copy(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, note: Callable[[], None]
) -> None:
    """Copies until the end, no faster than what is copied can leave; or until that is stuck."""
    with contextlib.suppress(OSError):  # a TimeoutError is one
        while part := await reader.read(_PART_BYTES):
            note()
            writer.write(part)
            async with asyncio.timeout(STALLED_SECONDS):
                await writer.drain()


async def _finish(writer: asyncio.StreamWriter) -> None:
    """Closes a side once all has left that was written to it, or it takes too long."""
    writer.close()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(FINISH_SECONDS):
            await writer.wait_closed()


def _uri(path: str) -> str:
    """A unix socket as gRPC spells it: the path is that of a URI (RFC 3986 section 3.3)."""
    return "unix:" + quote(path, safe="/:@!$&'()*+,;=~")


def _spelled(peer: tuple[str, int]) -> str:
    """An address as gRPC spells it."""
    host, port = peer[:2]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
