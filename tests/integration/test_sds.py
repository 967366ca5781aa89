"""Envoy's Secret Discovery Service on the agent's socket, spoken by hand over gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.rpc import status_pb2
from meshmint.agent.identities import Bundle, Identities
from meshmint.agent.sockets.feed import Feed
from meshmint.agent.sockets.sds import SecretDiscovery
from meshmint.third_party.envoy.config.core.v3.base_pb2 import Node
from meshmint.third_party.envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from meshmint.third_party.envoy.service.discovery.v3 import discovery_pb2
from meshmint.third_party.envoy.service.secret.v3 import sds_pb2_grpc
from support.agent_identities import Domain, picture, served

DOMAIN = Domain()
WEB, RENEWED = DOMAIN.identity(), DOMAIN.identity()
LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
SPIFFE_ID = "spiffe://example.org/ns/shop/sa/web"
Ask = discovery_pb2.DiscoveryRequest
AskDelta = discovery_pb2.DeltaDiscoveryRequest
Stub = sds_pb2_grpc.SecretDiscoveryServiceStub


@pytest.fixture
def identities() -> Identities:
    return Identities()


@pytest.fixture
async def stub(tmp_path: Path, identities: Identities) -> AsyncIterator[Any]:
    async with (
        served(tmp_path / "run", identities, protocols=["sds"], max_streams=16) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield Stub(channel)


def publish(identities: Identities, *held: Any, bundle: Bundle | None = None) -> None:
    identities.publish(picture(*held, bundles=[bundle or DOMAIN.bundle()]))


def secrets_in(response: Any) -> dict[str, Secret]:
    found = {}
    for packed in response.resources:
        secret = Secret()
        inner = packed.resource if isinstance(packed, discovery_pb2.Resource) else packed
        assert inner.Unpack(secret)
        found[secret.name] = secret
    return found


def serial_in(secret: Secret) -> int:
    pem = secret.tls_certificate.certificate_chain.inline_bytes
    return x509.load_pem_x509_certificates(pem)[0].serial_number


async def code_of(answer: Awaitable[Any]) -> grpc.StatusCode:
    """How a call ended, or that it did not fail."""
    try:
        await answer
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def ask_and_read(call: Any, *names: str) -> Any:
    with contextlib.suppress(asyncio.InvalidStateError):
        await call.write(Ask(resource_names=names))
    return await call.read()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110, a log has no event
        await asyncio.sleep(0.01)


async def test_whole_conversation_from_first_request_over_renewal_to_nack(
    stub: Any, identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    call = stub.StreamSecrets()
    await call.write(Ask(node=Node(id="side\x1b[31mcar"), resource_names=["default"]))
    publish(identities, WEB)

    first = await call.read()
    assert first.type_url.endswith("/envoy.extensions.transport_sockets.tls.v3.Secret")
    assert serial_in(secrets_in(first)["default"]) == WEB.certificate.serial_number

    # The names change in the ACK; the node is not told again.
    names = ["default", "ROOTCA", SPIFFE_ID]
    await call.write(
        Ask(version_info=first.version_info, response_nonce=first.nonce, resource_names=names)
    )
    second = await call.read()
    assert set(secrets_in(second)) == {"ROOTCA", SPIFFE_ID}
    await call.write(
        Ask(version_info=second.version_info, response_nonce=second.nonce, resource_names=names)
    )

    publish(identities, RENEWED)
    third = await call.read()
    assert set(secrets_in(third)) == {"default", SPIFFE_ID}
    assert serial_in(secrets_in(third)["default"]) == RENEWED.certificate.serial_number
    assert len({first.nonce, second.nonce, third.nonce}) == 3
    assert len({first.version_info, second.version_info, third.version_info}) == 3

    # It is refused: the version is that of before, and the error is told.
    await call.write(
        Ask(
            version_info=second.version_info,
            response_nonce=third.nonce,
            resource_names=names,
            error_detail=status_pb2.Status(code=3, message="bad\nkey " + "x" * 5000),
        )
    )
    publish(identities, RENEWED, bundle=DOMAIN.bundle(Domain("second").root))
    fourth = await call.read()

    assert set(secrets_in(fourth)) == {"ROOTCA"}

    def told() -> list[str]:
        return [r.getMessage() for r in caplog.records if "refuses" in r.getMessage()]

    await until(lambda: bool(told()))
    (line,) = told()
    assert line.startswith("The Envoy 'side [31mcar' refuses default, spiffe://")
    assert "bad key xxx" in line
    assert line.isprintable()
    assert len(line) < 1000
    call.cancel()


async def test_delta_conversation_subscribes_renews_removes_and_unsubscribes(
    stub: Any, identities: Identities
) -> None:
    publish(identities, WEB, DOMAIN.identity("api", "/ns/shop/sa/api"))
    call = stub.DeltaSecrets()
    await call.write(AskDelta(node=Node(id="one"), resource_names_subscribe=["web", "api"]))
    first = await call.read()
    assert set(secrets_in(first)) == {"web", "api"}
    assert {one.name for one in first.resources} == {"web", "api"}
    versions = {one.name: one.version for one in first.resources}
    await call.write(AskDelta(response_nonce=first.nonce))

    publish(identities, RENEWED)
    second = await call.read()
    assert serial_in(secrets_in(second)["web"]) == RENEWED.certificate.serial_number
    assert list(second.removed_resources) == ["api"]

    await call.write(
        AskDelta(
            response_nonce=second.nonce,
            resource_names_subscribe=["ROOTCA"],
            resource_names_unsubscribe=["web"],
        )
    )
    third = await call.read()
    assert set(secrets_in(third)) == {"ROOTCA"}
    publish(identities, WEB, bundle=DOMAIN.bundle(Domain("second").root))
    fourth = await call.read()
    assert set(secrets_in(fourth)) == {"ROOTCA"}
    call.cancel()

    # Another stream of the same client, which tells what it has.
    again = stub.DeltaSecrets()
    await again.write(
        AskDelta(resource_names_subscribe=["web", "ALL"], initial_resource_versions=versions)
    )
    fifth = await again.read()
    assert set(secrets_in(fifth)) == {"ALL"}
    assert list(fifth.removed_resources) == []
    again.cancel()


async def test_clients_cannot_fill_the_log(
    stub: Any, identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    publish(identities, WEB)
    for number in range(150):
        call = stub.StreamSecrets()
        await call.write(Ask(resource_names=[f"nobody-{number}"]))
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
    told = [r.getMessage() for r in caplog.records if r.name.endswith(".sds")]
    assert len(told) == 101
    assert "nobody-99," in told[-2]
    assert "more than is told in a minute" in told[-1]


async def test_unknown_name_is_told_in_the_log_and_sent_the_moment_it_exists(
    stub: Any, identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    publish(identities)
    whole, delta = stub.StreamSecrets(), stub.DeltaSecrets()
    await whole.write(Ask(node=Node(id="one"), resource_names=[SPIFFE_ID]))
    await delta.write(AskDelta(node=Node(id="one"), resource_names_subscribe=[SPIFFE_ID]))

    def told() -> list[str]:
        return [r.getMessage() for r in caplog.records if "asks for" in r.getMessage()]

    await until(lambda: len(told()) == 2)
    publish(identities, WEB)
    first, second = await whole.read(), await delta.read()

    assert set(secrets_in(first)) == set(secrets_in(second)) == {SPIFFE_ID}
    assert list(second.removed_resources) == []
    assert len(told()) == 2
    assert all(line.startswith(f"The Envoy 'one' asks for {SPIFFE_ID}, which") for line in told())
    whole.cancel()
    delta.cancel()


async def test_fetch_answers_for_what_there_is_and_names_what_there_is_not(
    stub: Any, identities: Identities
) -> None:
    early = await code_of(stub.FetchSecrets(Ask(resource_names=["default"])))
    publish(identities, WEB)
    some = await stub.FetchSecrets(Ask(resource_names=["default", "nothing"]))
    every = await stub.FetchSecrets(Ask())
    with pytest.raises(grpc.aio.AioRpcError) as none:
        await stub.FetchSecrets(Ask(resource_names=["nothing\n" + "x" * 1000, "nowhere"]))
    other = await code_of(stub.FetchSecrets(Ask(type_url=LISTENER)))

    assert early is grpc.StatusCode.UNAVAILABLE
    assert set(secrets_in(some)) == {"default"}
    assert set(secrets_in(every)) == {"web", SPIFFE_ID, "spiffe://example.org"}
    assert none.value.code() is grpc.StatusCode.NOT_FOUND
    details = none.value.details() or ""
    assert "nothing x" in details
    assert "nowhere" in details
    assert len(details) < 500
    assert other is grpc.StatusCode.INVALID_ARGUMENT


async def test_stream_of_another_type_ends_with_invalid_argument(stub: Any) -> None:
    call = stub.StreamSecrets()
    await call.write(Ask(type_url=LISTENER))

    assert await code_of(call.read()) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["StreamSecrets", "DeltaSecrets"])
@pytest.mark.parametrize("sent", [b"\xff\xff\xff", bytes(2 * 1024 * 1024)], ids=len)
async def test_what_is_no_request_ends_the_stream_and_is_no_bug(
    tmp_path: Path,
    identities: Identities,
    method: str,
    sent: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(identities, WEB)
    async with (
        served(tmp_path / "run", identities) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        raw = channel.stream_stream(f"/envoy.service.secret.v3.SecretDiscoveryService/{method}")
        call = raw()
        await call.write(sent)

        ended = await code_of(call.read())

    too_large = len(sent) > 1024 * 1024
    assert ended is (
        grpc.StatusCode.RESOURCE_EXHAUSTED if too_large else grpc.StatusCode.INVALID_ARGUMENT
    )
    # grpc.aio's poller makes the log of asyncio tell of events that another loop has taken.
    ours = [r for r in caplog.records if r.name.startswith("meshmint")]
    assert [r for r in ours if r.levelno >= logging.WARNING] == []


async def test_who_asks_once_and_hangs_up_the_sending_side_is_answered(
    stub: Any, identities: Identities
) -> None:
    publish(identities, WEB)
    call = stub.StreamSecrets()
    await call.write(Ask(resource_names=["default"]))
    await call.done_writing()

    heard = [one async for one in call]

    assert [set(secrets_in(one)) for one in heard] == [{"default"}]
    assert await call.code() is grpc.StatusCode.OK


async def test_request_and_hanging_up_that_come_together_are_answered_too(
    identities: Identities,
) -> None:
    # Over a network they come apart as a rule.
    class Context:
        def __init__(self) -> None:
            self.written: list[Any] = []

        async def write(self, response: Any) -> None:
            self.written.append(response)

    async def requests() -> AsyncIterator[Any]:
        yield Ask(resource_names=["default"])

    publish(identities, WEB)
    feed, context = Feed(None, 16), Context()
    following = asyncio.create_task(feed.run(identities))
    await asyncio.sleep(0)

    await SecretDiscovery(feed).StreamSecrets(requests(), context)  # type: ignore[arg-type]

    assert [set(secrets_in(one)) for one in context.written] == [{"default"}]
    following.cancel()


async def test_stream_that_never_asks_is_ended(identities: Identities) -> None:
    server = grpc.aio.server()
    feed = Feed(None, 16)
    sds_pb2_grpc.add_SecretDiscoveryServiceServicer_to_server(
        SecretDiscovery(feed, first_request_seconds=0.05), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        silent, talking = Stub(channel).StreamSecrets(), Stub(channel).StreamSecrets()
        await talking.write(Ask(resource_names=["default"]))

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await silent.read()

        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # Who has asked may be silent for good.
        assert not talking.done()
        assert feed.listeners == 1
        talking.cancel()
    await server.stop(None)


async def test_who_never_reads_costs_one_picture_and_gets_the_newest_in_the_end(
    stub: Any, identities: Identities
) -> None:
    # Each picture is far more than a tenth of what gRPC keeps for who does not read.
    roots = tuple(DOMAIN.bundle().roots) * 1000
    slow, quick = stub.StreamSecrets(), stub.StreamSecrets()
    await slow.write(Ask(resource_names=["ROOTCA", "default"]))
    await quick.write(Ask(resource_names=["default"]))
    held = [DOMAIN.identity() for _ in range(60)]
    for number, identity in enumerate(held):
        publish(identities, identity, bundle=Bundle("example.org", roots[number:]))
        # Everybody else goes on.
        while serial_in(secrets_in(await quick.read())["default"]) != (
            identity.certificate.serial_number
        ):
            pass

    heard = 0
    while True:
        found = secrets_in(await slow.read())
        heard += 1
        if serial_in(found["default"]) == held[-1].certificate.serial_number:
            break

    newest = found["ROOTCA"].validation_context.trusted_ca.inline_bytes
    assert newest.count(b"BEGIN CERTIFICATE") == 1000 - 59
    assert heard < 30
    slow.cancel()
    quick.cancel()


async def test_one_stream_too_many_is_told_to_come_back_and_a_closed_one_makes_room(
    stub: Any, identities: Identities
) -> None:
    publish(identities, WEB)
    open_ones = [stub.StreamSecrets() for _ in range(16)]
    for call in open_ones:
        await call.write(Ask(resource_names=["default"]))
        await call.read()

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.StreamSecrets().read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "max_streams" in (refused.value.details() or "")

    open_ones.pop().cancel()
    while True:
        call = stub.StreamSecrets()
        # Not until the server has noticed.
        if await code_of(ask_and_read(call, "default")) is grpc.StatusCode.OK:
            break
    for one in (*open_ones, call):
        one.cancel()


async def test_all_who_start_at_once_are_answered(tmp_path: Path, identities: Identities) -> None:
    publish(identities, WEB)
    async with (
        served(tmp_path / "run", identities) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        calls = [Stub(channel).StreamSecrets() for _ in range(2000)]

        answers = await asyncio.gather(*(ask_and_read(call, "default") for call in calls))

        assert all(set(secrets_in(one)) == {"default"} for one in answers)
        for call in calls:
            call.cancel()


async def test_clients_that_vanish_in_the_middle_leave_nothing_and_no_error(
    tmp_path: Path, identities: Identities, caplog: pytest.LogCaptureFixture
) -> None:
    crowd = DOMAIN.bundle(*[Domain(f"d{n}").root for n in range(200)])
    publish(identities, WEB, bundle=crowd)
    async with served(tmp_path / "run", identities, max_streams=3) as address:
        for _ in range(12):
            async with grpc.aio.insecure_channel(
                address, options=[("grpc.use_local_subchannel_pool", 1)]
            ) as channel:
                calls = [Stub(channel).StreamSecrets() for _ in range(3)]
                # Those of before may still be on their way out.
                ends = {await code_of(ask_and_read(call, "ALL", "ROOTCA")) for call in calls}
                assert ends <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
                publish(identities, DOMAIN.identity(), bundle=crowd)

    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


async def test_streams_end_with_unavailable_when_the_agent_stops(
    tmp_path: Path, identities: Identities
) -> None:
    publish(identities, WEB)
    channel = None
    async with served(tmp_path / "run", identities) as address:
        channel = grpc.aio.insecure_channel(address)
        call = Stub(channel).StreamSecrets()
        await call.write(Ask(resource_names=["default"]))
        await call.read()

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await call.read()

    # Not CANCELLED: clients take that for their own doing, and do not come back.
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the agent is stopping" in (ended.value.details() or "")
    await channel.close()
    assert not (tmp_path / "run" / "agent.sock").exists()
