"""What strangers do to the HTTP listener with slow and with many connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from meshmint_server.http_api import bind, build_bundle_endpoint, connection, listener, serve_http
from meshmint_server.http_api.conditional import Document, respond
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from support.server_ca import TestCa

SIZE = 16 * 1024 * 1024
ENOUGH = 30  # seconds after which a test that waits in vain fails
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def healthz(_request: Request) -> Response:
    return PlainTextResponse("ok\n")


async def large(request: Request) -> Response:
    return respond(request, Document(bytes(SIZE), "application/pkix-crl", "tag", 60))


async def body(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


APPLICATION = Starlette(
    routes=[
        Route("/healthz", healthz),
        Route("/large", large, methods=["GET", "HEAD"]),
        Route("/body", body, methods=["POST"]),
    ]
)


class Edge:
    """A listener, and connections to it that end with the test."""

    def __init__(self, bound: socket.socket, stack: contextlib.AsyncExitStack) -> None:
        self.address: tuple[str, int] = bound.getsockname()[:2]
        self._stack = stack

    async def connect(self, sent: bytes = b"") -> Streams:
        reader, writer = await asyncio.open_connection(*self.address, limit=1024)
        self._stack.push_async_callback(abort, writer)
        writer.write(sent)
        return reader, writer

    async def status(self, path: str = "/healthz") -> int:
        reader, _ = await self.connect(request_to(path))
        return int((await reader.readline()).split()[1])


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    bound = bind("127.0.0.1", 0)
    async with (
        asyncio.timeout(ENOUGH),
        serve_http(APPLICATION, bound),
        contextlib.AsyncExitStack() as stack,
    ):
        yield Edge(bound, stack)


async def abort(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def request_to(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


async def is_ended(reader: asyncio.StreamReader) -> bool:
    """Whether the other side ends the connection, whatever it says before."""
    with contextlib.suppress(ConnectionError):
        await reader.read(-1)
    return True


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /healthz HTTP/1.1\r\nHost:", request_to("/healthz") + b"GET /hea"],
    ids=["nothing", "half a head", "half a second head"],
)
async def test_head_that_does_not_come_ends_the_connection(
    edge: Edge, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    reader, _ = await edge.connect(sent)
    assert await is_ended(reader)


async def test_head_that_comes_byte_by_byte_ends_the_connection(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    reader, writer = await edge.connect(request_to("/healthz"))
    assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
    ended = asyncio.create_task(is_ended(reader))
    while not ended.done():
        writer.write(b"G")
        await asyncio.sleep(0.01)


async def test_body_that_does_not_come_ends_the_connection(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_EXCHANGE_SECONDS", 0.2)
    reader, _ = await edge.connect(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
    assert await is_ended(reader)


async def test_answer_that_is_not_read_ends_the_connection(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_EXCHANGE_SECONDS", 0.2)
    reader, _ = await edge.connect(request_to("/large"))
    seen = 0
    with contextlib.suppress(ConnectionError):
        while part := await reader.read(1024):
            seen += len(part)
            await asyncio.sleep(0.005)
    assert seen < SIZE


async def test_those_who_wait_make_room_for_those_who_ask(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_MOST_CONNECTIONS", 10)
    bound = bind("127.0.0.1", 0)
    async with serve_http(APPLICATION, bound), contextlib.AsyncExitStack() as stack:
        small = Edge(bound, stack)
        idle, _ = await small.connect(request_to("/healthz"))
        await idle.readuntil(b"ok\n")
        silent = [await small.connect(b"GET /") for _ in range(30)]
        assert [await small.status() for _ in range(5)] == [200] * 5
        assert await is_ended(idle)
        assert await is_ended(silent[0][0])


async def test_those_who_are_being_answered_keep_their_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "_MOST_CONNECTIONS", 4)
    bound = bind("127.0.0.1", 0)
    async with (
        asyncio.timeout(ENOUGH),
        serve_http(APPLICATION, bound),
        contextlib.AsyncExitStack() as stack,
    ):
        small = Edge(bound, stack)
        busy = [await small.connect(request_to("/large")) for _ in range(3)]
        for reader, _ in busy:
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        assert await small.status() == 503
        for reader, _ in busy:
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(SIZE)


async def test_tls_handshake_that_does_not_come_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    bound = bind("127.0.0.1", 0)
    context = TestCa(tmp_path).server_context()
    async with (
        asyncio.timeout(ENOUGH),
        serve_http(APPLICATION, bound, context),
        contextlib.AsyncExitStack() as stack,
    ):
        reader, _ = await Edge(bound, stack).connect()
        assert await is_ended(reader)


async def test_large_document_is_sent_in_parts_and_its_head_alone_without(edge: Edge) -> None:
    reader, writer = await edge.connect(request_to("/large").replace(b"GET", b"HEAD"))
    assert f"content-length: {SIZE}\r\n".encode() in await reader.readuntil(b"\r\n\r\n")
    writer.write(request_to("/large"))  # right behind: no body came
    await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(SIZE) == bytes(SIZE)

    sent: list[int] = []

    async def send(message: Any) -> None:
        sent.append(len(message.get("body", b"")))

    scope = {"type": "http", "method": "GET", "path": "/large", "headers": []}
    response = await large(Request(scope))
    await response(scope, lambda: None, send)  # type: ignore[arg-type, return-value]
    assert (sum(sent), max(sent) <= 64 * 1024) == (SIZE, True)


async def test_bundle_endpoint_sends_nobody_where_the_host_header_says() -> None:
    bound = bind("127.0.0.1", 0)
    application = build_bundle_endpoint(None, "/bundle")  # type: ignore[arg-type]  # not asked
    async with (
        asyncio.timeout(ENOUGH),
        serve_http(application, bound),
        contextlib.AsyncExitStack() as stack,
    ):
        assert await Edge(bound, stack).status("/bundle/") == 404
