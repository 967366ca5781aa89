"""An HTTP listener on a port that all workers share, with or without TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette

from meshmint_server.http_api import connection

__all__ = ["bind", "serve_http"]

# Beyond that, those who wait are let go, and where none waits new connections are told
# 503: they must not take the file descriptors that the gRPC listener and the store need.
_MOST_CONNECTIONS = 1000
_DRAIN_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """Binds a TCP port that other workers may bind as well.

    Raises:
        OSError: The address cannot be bound.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(target)
    except OSError as error:
        bound.close()
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    return bound


@asynccontextmanager
async def serve_http(
    application: Starlette, bound: socket.socket, tls: ssl.SSLContext | None = None
) -> AsyncIterator[None]:
    """Serves the application until the end, when requests in flight get a few seconds."""
    server = _Server(
        uvicorn.Config(
            application,
            http=connection.Connection,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=_DRAIN_SECONDS,
            ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        )
    )
    # From here on nobody is refused; who comes before the server is up waits for it.
    bound.listen(server.config.backlog)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """Leaves the signals to the worker, and does not wait for a TLS handshake for long."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        limit = None if self.config.ssl is None else connection.HEAD_SECONDS
        self.servers = [
            await loop.create_server(
                lambda: connection.Connection(self.config, self.server_state, {}, loop),
                sock=bound,
                ssl=self.config.ssl,
                ssl_handshake_timeout=limit,
                backlog=self.config.backlog,
            )
            for bound in sockets or ()
        ]
        self.started = True
