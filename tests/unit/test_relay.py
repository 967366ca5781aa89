"""The relay for clients without ALPN: what goes in comes out, and nobody is kept for ever."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from meshmint_server.grpc_api import Relay
from meshmint_server.grpc_api import relay as relay_module
from support.server_ca import TestCa

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MEGABYTES = os.urandom(3 * 1024 * 1024)
PATIENCE = 30


@pytest.fixture
def ca(tmp_path: Path) -> TestCa:
    return TestCa(tmp_path / "ca")


@asynccontextmanager
async def relaying(
    directory: Path, ca: TestCa, inside: Handler, **options: int
) -> AsyncIterator[tuple[Relay, int]]:
    """A relay before something that is not gRPC, and the port that it is on."""
    directory.mkdir(exist_ok=True)
    relay = Relay(directory, **options)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await inside(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(handle, directory / "grpc")
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    try:
        async with relay.serve(bound, ca.server_context()):
            yield relay, bound.getsockname()[1]
    finally:
        server.close()


async def connected(port: int, ca: TestCa) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    tls = ssl.create_default_context(cafile=str(ca.file))
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname="localhost")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(10_000):
        writer.write(part)
        await writer.drain()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - there is nothing to be told by
            await asyncio.sleep(0.01)


async def test_megabytes_come_back_as_they_went(tmp_path: Path, ca: TestCa) -> None:
    async with relaying(tmp_path / "relay", ca, echo) as (_, port):
        reader, writer = await connected(port, ca)

        async def send() -> None:
            writer.write(MEGABYTES)
            await writer.drain()

        sending = asyncio.create_task(send())
        assert await reader.readexactly(len(MEGABYTES)) == MEGABYTES
        await sending
        writer.close()


async def test_what_was_said_last_arrives_though_who_said_it_is_gone(
    tmp_path: Path, ca: TestCa
) -> None:
    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(MEGABYTES)
        await writer.drain()

    async with relaying(tmp_path / "relay", ca, say) as (_, port):
        # One who takes little at a time, so that much is on its way when all was said.
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", port))
        tls = ssl.create_default_context(cafile=str(ca.file))
        reader, writer = await asyncio.open_connection(
            sock=narrow, ssl=tls, server_hostname="localhost", limit=1024
        )
        heard = bytearray()
        while part := await reader.read(4096):
            heard += part
        assert heard == MEGABYTES
        writer.close()


async def test_the_peer_is_known_while_it_is_connected_and_no_longer(
    tmp_path: Path, ca: TestCa
) -> None:
    async with relaying(tmp_path / "relay", ca, echo) as (relay, port):
        reader, writer = await connected(port, ca)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        own = writer.get_extra_info("sockname")
        assert list(relay.peers.values()) == [f"ipv4:127.0.0.1:{own[1]}"]
        # Nothing but the listener's own socket stays in the directory.
        assert [file.name for file in (tmp_path / "relay").iterdir()] == ["grpc"]

        writer.close()
        await until(lambda: not relay.peers)


@pytest.mark.parametrize("name", ["relay", "a b", "a%20b", "a[b]ü", "a:b@c,d+e"])
async def test_grpc_tells_the_peer_by_the_name_that_it_is_known_by(
    tmp_path: Path, ca: TestCa, name: str
) -> None:
    directory = tmp_path / name
    directory.mkdir()
    relay = Relay(directory)
    seen: list[str | None] = []

    async def tell(_: bytes, context: Any) -> bytes:
        seen.append(relay.peers.get(context.peer()))
        return b""

    server = grpc.aio.server()
    handlers = {"Tell": grpc.unary_unary_rpc_method_handler(tell)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    server.add_insecure_port(relay.address)
    await server.start()
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    tls = ca.server_context()
    tls.set_alpn_protocols(["h2"])  # gRPC's own client insists on it
    async with relay.serve(bound, tls):
        roots = grpc.ssl_channel_credentials(ca.file.read_bytes())
        address = f"localhost:{bound.getsockname()[1]}"
        async with grpc.aio.secure_channel(address, roots) as channel:
            await channel.unary_unary("/test/Tell")(b"", timeout=PATIENCE)
    await server.stop(0)
    assert [(peer or "").rpartition(":")[0] for peer in seen] == ["ipv4:127.0.0.1"]


async def test_who_goes_away_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, ca: TestCa
) -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        ended.set()

    async with relaying(tmp_path / "relay", ca, wait) as (relay, port):
        _, writer = await connected(port, ca)
        writer.write(b"some")
        await until(lambda: bool(relay.peers))
        writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await ended.wait()
        await until(lambda: not relay.peers)


async def test_beyond_the_limit_nobody_is_let_in_until_somebody_has_gone(
    tmp_path: Path, ca: TestCa
) -> None:
    async with relaying(tmp_path / "relay", ca, echo, most=1) as (relay, port):
        _, first = await connected(port, ca)
        await until(lambda: bool(relay.peers))
        with pytest.raises(OSError):  # noqa: PT011 - which one is up to TLS
            await _ask(port, ca)

        first.close()
        await until(lambda: not relay.peers)
        assert await _ask(port, ca) == b"x"


async def test_who_says_nothing_in_a_handshake_has_a_place_and_then_makes_room(
    tmp_path: Path, ca: TestCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PATIENCE_SECONDS", 0.5)
    async with relaying(tmp_path / "relay", ca, echo, most=2) as (_, port):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        with pytest.raises(OSError):  # noqa: PT011 - which one is up to TLS
            await _ask(port, ca)
        await asyncio.sleep(0.6)
        assert await _ask(port, ca) == b"x"
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(silent[0][0].read(1), PATIENCE) == b""
        for _, writer in silent:
            writer.transport.abort()


async def test_who_is_heard_keeps_its_place_and_who_was_silent_longest_makes_room(
    tmp_path: Path, ca: TestCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PATIENCE_SECONDS", 0.3)
    async with relaying(tmp_path / "relay", ca, echo, most=2) as (relay, port):
        heard = await connected(port, ca)
        silent = await connected(port, ca)
        await until(lambda: len(relay.peers) == 2)
        await asyncio.sleep(0.4)
        heard[1].write(b"x")
        assert await heard[0].readexactly(1) == b"x"

        newcomer = await connected(port, ca)
        newcomer[1].write(b"y")
        assert await newcomer[0].readexactly(1) == b"y"
        assert await asyncio.wait_for(silent[0].read(1), PATIENCE) == b""
        heard[1].write(b"z")
        assert await heard[0].readexactly(1) == b"z"
        for _, writer in (heard, silent, newcomer):
            writer.transport.abort()


async def test_clients_take_three_descriptors_each_and_half_of_all_at_most(
    tmp_path: Path, ca: TestCa
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (480, hard))
    try:
        async with relaying(tmp_path / "relay", ca, echo) as (relay, port):
            before = _open_files()
            clients = [await connected(port, ca) for _ in range(20)]
            await until(lambda: len(relay.peers) == 20)
            # One is the client's own. What other tests have left may go meanwhile.
            assert _open_files() - before <= 20 * (1 + 3)

            clients += [await connected(port, ca) for _ in range(60)]
            await until(lambda: len(relay.peers) == 80)
            with pytest.raises(OSError):  # noqa: PT011
                await _ask(port, ca)
            for _, writer in clients:
                writer.transport.abort()
            await until(lambda: not relay.peers)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_no_descriptor_left_is_no_end_to_letting_in(tmp_path: Path, ca: TestCa) -> None:
    async with relaying(tmp_path / "relay", ca, echo) as (_, port):
        with socket.create_connection(("127.0.0.1", port)):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await asyncio.sleep(0.3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert await _ask(port, ca) == b"x"


async def test_who_takes_nothing_is_let_go_though_it_stays(
    tmp_path: Path, ca: TestCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(relay_module, "FINISH_SECONDS", 0.3)

    async def say(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(MEGABYTES * 8)
        await writer.drain()

    async with relaying(tmp_path / "relay", ca, say) as (relay, port):
        _, writer = await connected(port, ca)
        await until(lambda: bool(relay.peers))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: not relay.peers)
        writer.transport.abort()


async def test_a_place_too_deep_for_sockets_is_named_at_the_start(
    tmp_path: Path, ca: TestCa
) -> None:
    # Room for the listener's name, and not for those of its clients once they are many.
    deep = tmp_path / ("d" * (105 - len(os.fsencode(tmp_path / "grpc")) - 1))
    with pytest.raises(OSError, match="TMPDIR"):
        async with relaying(deep, ca, echo):
            pass


async def _ask(port: int, ca: TestCa) -> bytes:
    reader, writer = await connected(port, ca)
    try:
        writer.write(b"x")
        answer = await reader.read(1)
    finally:
        writer.transport.abort()
    if not answer:
        raise ConnectionError("no answer")
    return answer


async def test_where_there_is_nothing_inside_the_connection_ends(
    tmp_path: Path, ca: TestCa
) -> None:
    async with relaying(tmp_path / "relay", ca, echo) as (relay, port):
        (tmp_path / "relay" / "grpc").unlink()
        with pytest.raises(OSError):  # noqa: PT011
            await _ask(port, ca)
        assert not relay.peers


async def test_at_the_end_connections_that_are_open_are_let_go(tmp_path: Path, ca: TestCa) -> None:
    async with relaying(tmp_path / "relay", ca, echo) as (relay, port):
        reader, writer = await connected(port, ca)
        await until(lambda: bool(relay.peers))
    with contextlib.suppress(OSError):
        assert await reader.read(1) == b""
    assert not relay.peers
    writer.transport.abort()
