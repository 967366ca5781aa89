"""Health, status and metrics over HTTP on a loopback address; GET and HEAD, and nothing else.

Strangers on this machine may ask: nothing secret is told, and whoever is slow or sends
rubbish is hung up on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from meshmint.agent.fields import LoopbackAddress
from meshmint.errors import ConfigurationError

__all__ = ["Page", "serve_pages"]

_MAX_HEAD = 8 * 1024
_SECONDS = 5.0
_MOST_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Page:
    """One answer."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


@contextlib.asynccontextmanager
async def serve_pages(
    address: LoopbackAddress, pages: Mapping[str, Callable[[], Page]]
) -> AsyncIterator[None]:
    """Serves pages by their path until left.

    Raises:
        ConfigurationError: The address cannot be listened on.
    """
    present: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # All that is said is on its way when `drain` returns, or never will be.
        writer.transport.set_write_buffer_limits(0)
        try:
            async with asyncio.timeout(_SECONDS):
                await _answer(reader, writer, pages)
        except (TimeoutError, OSError, ValueError, EOFError, asyncio.LimitOverrunError):
            pass
        finally:
            if writer.transport.get_write_buffer_size():
                writer.transport.abort()
            else:
                writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(present) >= _MOST_AT_ONCE:
            writer.transport.abort()
            return
        task = asyncio.create_task(serve(reader, writer))
        present.add(task)
        task.add_done_callback(present.discard)

    try:
        server = await asyncio.start_server(accept, address.host, address.port, limit=_MAX_HEAD)
    except OSError as error:
        raise ConfigurationError(
            f"health: cannot listen on {address}: {error.strerror or error}: "
            "choose another port, or stop what uses it"
        ) from error
    try:
        yield
    finally:
        server.close()
        for task in tuple(present):
            task.cancel()
        await asyncio.gather(*present, return_exceptions=True)


async def _answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    pages: Mapping[str, Callable[[], Page]],
) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    line = head.partition(b"\r\n")[0].decode("ascii")
    method, path, _ = line.split(" ", 2)
    page = pages.get(path.partition("?")[0])
    if method not in ("GET", "HEAD"):
        answer = Page(b"only GET and HEAD\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
    elif page is None:
        known = " ".join(pages)
        answer = Page(f"there is: {known}\n".encode(), status=HTTPStatus.NOT_FOUND)
    else:
        answer = page()
    writer.write(
        (
            f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"Content-Length: {len(answer.body)}\r\n"
            "Cache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            "Connection: close\r\n\r\n"
        ).encode()
    )
    if method != "HEAD":
        writer.write(answer.body)
    await writer.drain()
