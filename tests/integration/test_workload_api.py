"""The SPIFFE Workload API on the agent's socket: by hand, and by the public Python client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from meshmint.agent.identities import Bundle, Identities
from meshmint.agent.sockets import workload_api
from meshmint.agent.sockets.feed import Feed
from meshmint.agent.sockets.jwt_svids import JwtSvids
from meshmint.agent.sockets.workload_api import WorkloadApi
from meshmint.errors import PermissionDenied, Unauthenticated, Unavailable
from meshmint.third_party.spiffe import workload_pb2 as pb
from meshmint.third_party.spiffe import workload_pb2_grpc
from support.agent_identities import Domain, TokenMaker, picture, served

DOMAIN, OTHER = Domain(), Domain("other.example")
WEB, RENEWED = DOMAIN.identity(), DOMAIN.identity()
API = DOMAIN.identity("api", "/ns/shop/sa/api")
PLAIN = DOMAIN.identity("plain", None, dns_names=["www.example.org"])
WEB_ID, API_ID = "spiffe://example.org/ns/shop/sa/web", "spiffe://example.org/ns/shop/sa/api"
HEADER = (("workload.spiffe.io", "true"),)
# It registers the same messages as ours, so it is never imported here.
CLIENT = Path(__file__).parents[1] / "support" / "spiffe_client.py"
Stub = workload_pb2_grpc.SpiffeWorkloadAPIStub


@pytest.fixture
def identities() -> Identities:
    return Identities()


@pytest.fixture
def tokens() -> TokenMaker:
    return TokenMaker(DOMAIN, OTHER)


@pytest.fixture
async def address(tmp_path: Path, identities: Identities, tokens: TokenMaker) -> AsyncIterator[str]:
    async with served(tmp_path / "run", identities, tokens, max_streams=16) as address:
        yield address


@pytest.fixture
async def stub(address: str) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address) as channel:
        yield Stub(channel)


def publish(identities: Identities, *held: Any, bundles: Any = None) -> None:
    bundles = bundles or [DOMAIN.bundle(), OTHER.bundle()]
    identities.publish(picture(*held, bundles=bundles))


async def failure(answer: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await answer
    return failed.value.code(), failed.value.details() or ""


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110, nobody tells
        await asyncio.sleep(0.01)


def x509_svids(stub: Any) -> Any:
    return stub.FetchX509SVID(pb.X509SVIDRequest(), metadata=HEADER)


def certificates(der: bytes) -> list[x509.Certificate]:
    """Certificates that follow one another, each with its own length in front."""
    found = []
    while der:
        # DER: a tag, 0x82, and two bytes of length.
        assert der[:2] == b"\x30\x82"
        end = 4 + int.from_bytes(der[2:4], "big")
        found.append(x509.load_der_x509_certificate(der[:end]))
        der = der[end:]
    return found


ASK: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "FetchX509SVID": lambda stub, header: stub.FetchX509SVID(
        pb.X509SVIDRequest(), metadata=header
    ).read(),
    "FetchX509Bundles": lambda stub, header: stub.FetchX509Bundles(
        pb.X509BundlesRequest(), metadata=header
    ).read(),
    "FetchJWTBundles": lambda stub, header: stub.FetchJWTBundles(
        pb.JWTBundlesRequest(), metadata=header
    ).read(),
    "FetchJWTSVID": lambda stub, header: stub.FetchJWTSVID(
        pb.JWTSVIDRequest(audience=["them"]), metadata=header
    ),
    "ValidateJWTSVID": lambda stub, header: stub.ValidateJWTSVID(
        pb.ValidateJWTSVIDRequest(audience="them", svid="x.y.z"), metadata=header
    ),
}


@pytest.mark.parametrize("method", ASK)
async def test_every_method_wants_the_header_then_a_picture_then_an_identity(
    method: str, stub: Any, identities: Identities
) -> None:
    for header in (
        None,
        (("workload.spiffe.io", "false"),),
        (("workload.spiffe.io", "True"),),
        (("workload.spiffe.io", ""),),
        (*HEADER, *HEADER),
    ):
        code, details = await failure(ASK[method](stub, header))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "workload.spiffe.io: true" in details

    assert (await failure(ASK[method](stub, HEADER)))[0] is grpc.StatusCode.UNAVAILABLE

    # A certificate without a SPIFFE ID is none for this API.
    publish(identities, PLAIN)
    assert (await failure(ASK[method](stub, HEADER)))[0] is grpc.StatusCode.PERMISSION_DENIED

    # An X509-SVID without the bundle of its trust domain neither.
    publish(identities, WEB, bundles=[OTHER.bundle(), Bundle("example.org", ())])
    assert (await failure(ASK[method](stub, HEADER)))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_x509_svids_come_with_chain_key_bundle_and_hint_and_federated_bundles(
    stub: Any, identities: Identities
) -> None:
    publish(identities, PLAIN, WEB, API)

    answer = await x509_svids(stub).read()

    assert [one.spiffe_id for one in answer.svids] == [WEB_ID, API_ID]
    assert [one.hint for one in answer.svids] == ["web", "api"]
    first = answer.svids[0]
    assert certificates(first.x509_svid) == [WEB.certificate, DOMAIN.issuer.certificate]
    key = load_der_private_key(first.x509_svid_key, None)
    assert key.public_key() == WEB.certificate.public_key()
    assert certificates(first.bundle) == [DOMAIN.root.certificate]
    assert set(answer.federated_bundles) == {"spiffe://other.example"}
    assert certificates(answer.federated_bundles["spiffe://other.example"]) == [
        OTHER.root.certificate
    ]
    assert not answer.crl


async def test_each_message_of_a_stream_is_the_whole_picture_and_none_comes_twice(
    stub: Any, identities: Identities
) -> None:
    publish(identities, WEB, API)
    stream = x509_svids(stub)
    assert len((await stream.read()).svids) == 2

    # Nothing that concerns workloads: no message, though all streams have looked.
    publish(identities, WEB, API, PLAIN)
    for _ in range(3):
        await stub.FetchJWTSVID(pb.JWTSVIDRequest(audience=["them"]), metadata=HEADER)
    publish(identities, RENEWED, bundles=[DOMAIN.bundle(OTHER.root)])
    newest = await stream.read()

    assert [one.spiffe_id for one in newest.svids] == [WEB_ID]
    assert certificates(newest.svids[0].x509_svid)[0] == RENEWED.certificate
    assert len(certificates(newest.svids[0].bundle)) == 2
    assert not newest.federated_bundles

    # The last identity is gone: so is the stream.
    publish(identities, PLAIN)
    assert (await failure(stream.read()))[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_a_message_is_encoded_once_for_all_who_stream_and_only_if_it_is_another(
    identities: Identities, tokens: TokenMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Context:
        def __init__(self) -> None:
            self.written: list[bytes] = []

        def invocation_metadata(self) -> Any:
            return HEADER

        async def write(self, message: bytes) -> None:
            self.written.append(message)

    made: list[Any] = []
    make = workload_api._x509_svids

    def counted(served: Any) -> Any:
        made.append(served)
        return make(served)

    monkeypatch.setattr(workload_api, "_x509_svids", counted)
    feed, of_bundles = Feed(None, 16), Context()
    api, contexts = WorkloadApi(feed, JwtSvids(tokens)), [Context() for _ in range(3)]
    publish(identities, WEB)
    following = asyncio.create_task(feed.run(identities))
    await asyncio.sleep(0)
    calls: list[Any] = [api.FetchX509SVID(pb.X509SVIDRequest(), one) for one in contexts]  # type: ignore[arg-type]
    calls.append(api.FetchX509Bundles(pb.X509BundlesRequest(), of_bundles))  # type: ignore[arg-type]
    streams = [asyncio.create_task(call) for call in calls]
    everybody = [*contexts, of_bundles]
    await until(lambda: all(len(one.written) == 1 for one in everybody))
    publish(identities, RENEWED)
    await until(lambda: all(len(one.written) == 2 for one in contexts))
    publish(identities, RENEWED, bundles=[DOMAIN.bundle()])
    await until(lambda: all(len(one.written) == 3 for one in contexts))
    await until(lambda: len(of_bundles.written) > 1)

    for first, *others in zip(*(one.written for one in contexts), strict=True):
        assert all(other is first for other in others)
    assert len(made) == 3
    # A renewal is no news to who wants bundles alone.
    assert len(of_bundles.written) == 2
    for task in (*streams, following):
        task.cancel()
    await asyncio.gather(*streams, following, return_exceptions=True)


async def test_what_changes_on_other_sockets_wakes_no_stream(identities: Identities) -> None:
    feed = Feed(("web",), 16)
    following = asyncio.create_task(feed.run(identities))
    await asyncio.sleep(0)
    with feed.listen() as news:
        publish(identities, WEB)
        await until(lambda: feed.view is not None)
        view = feed.view
        news.clear()
        publish(identities, WEB, API)
        await asyncio.sleep(0.2)
        assert not news.is_set()
        assert feed.view is view
        publish(identities, RENEWED, API)
        await until(news.is_set)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_bundles_come_by_trust_domain_and_again_when_one_changes(
    stub: Any, identities: Identities
) -> None:
    publish(identities, WEB)
    roots = stub.FetchX509Bundles(pb.X509BundlesRequest(), metadata=HEADER)
    keys = stub.FetchJWTBundles(pb.JWTBundlesRequest(), metadata=HEADER)
    assert {name: len(certificates(der)) for name, der in (await roots.read()).bundles.items()} == {
        "spiffe://example.org": 1,
        "spiffe://other.example": 1,
    }
    assert {
        name: [key["kid"] for key in json.loads(found)["keys"]]
        for name, found in (await keys.read()).bundles.items()
    } == {"spiffe://example.org": ["one"], "spiffe://other.example": ["one"]}

    publish(identities, WEB, bundles=[DOMAIN.bundle(OTHER.root), Bundle("other.example", ())])

    assert {name: len(certificates(der)) for name, der in (await roots.read()).bundles.items()} == {
        "spiffe://example.org": 2
    }
    assert set((await keys.read()).bundles) == {"spiffe://example.org"}
    roots.cancel()
    keys.cancel()


async def test_only_the_certificates_of_the_socket_are_served_the_first_one_first(
    tmp_path: Path, identities: Identities, tokens: TokenMaker
) -> None:
    secret = DOMAIN.identity("secret", "/secret")
    publish(identities, secret, WEB, API)
    names = ["api", "not there yet", "web"]
    async with (
        served(tmp_path / "run", identities, tokens, certificates=names) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = Stub(channel)
        answer = await x509_svids(stub).read()
        code, details = await failure(
            stub.FetchJWTSVID(
                pb.JWTSVIDRequest(audience=["them"], spiffe_id="spiffe://example.org/secret"),
                metadata=HEADER,
            )
        )

    assert [one.spiffe_id for one in answer.svids] == [API_ID, WEB_ID]
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "spiffe://example.org/secret" in details
    assert tokens.calls == []


async def test_jwt_svids_come_for_each_identity_or_for_the_one_asked_for(
    stub: Any, identities: Identities, tokens: TokenMaker
) -> None:
    publish(identities, WEB, API, PLAIN)

    every = await stub.FetchJWTSVID(pb.JWTSVIDRequest(audience=["b", "a"]), metadata=HEADER)
    one = await stub.FetchJWTSVID(
        pb.JWTSVIDRequest(audience=["a", "b", "a"], spiffe_id=API_ID), metadata=HEADER
    )

    assert [(svid.spiffe_id, svid.hint) for svid in every.svids] == [
        (WEB_ID, "web"),
        (API_ID, "api"),
    ]
    # The same token: the same audiences in another order are the same question.
    assert [svid.svid for svid in one.svids] == [every.svids[1].svid]
    assert tokens.calls == [("web", ("a", "b")), ("api", ("a", "b"))]


@pytest.mark.parametrize(
    "audiences", [[], [""], ["them", ""], ["x" * 2048, "y" * 2049], [str(n) for n in range(17)]]
)
async def test_no_empty_long_or_many_audiences(
    audiences: list[str], stub: Any, identities: Identities, tokens: TokenMaker
) -> None:
    publish(identities, WEB)

    code, details = await failure(
        stub.FetchJWTSVID(pb.JWTSVIDRequest(audience=audiences), metadata=HEADER)
    )

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "audience" in details
    assert tokens.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("the service does not answer"), grpc.StatusCode.UNAVAILABLE),
        # The agent's credential, not the workload's.
        (Unauthenticated("the token has expired"), grpc.StatusCode.UNAVAILABLE),
        (PermissionDenied("the role gives no tokens"), grpc.StatusCode.PERMISSION_DENIED),
        (RuntimeError("secret detail"), grpc.StatusCode.INTERNAL),
    ],
)
async def test_error_of_the_source_becomes_a_code_that_workloads_understand(
    error: Exception,
    code: grpc.StatusCode,
    stub: Any,
    identities: Identities,
    tokens: TokenMaker,
) -> None:
    publish(identities, WEB)
    tokens.error = error

    found, details = await failure(
        stub.FetchJWTSVID(pb.JWTSVIDRequest(audience=["them"]), metadata=HEADER)
    )

    assert found is code
    assert "secret detail" not in details


async def test_identity_whose_role_gives_no_tokens_does_not_keep_the_others_from_theirs(
    stub: Any, identities: Identities, tokens: TokenMaker
) -> None:
    publish(identities, WEB, OTHER.identity("other", "/there"))
    fetch = tokens.fetch_jwt_svid

    async def refuse_the_first(identity: Any, audiences: Any) -> Any:
        if identity.name == "web":
            raise PermissionDenied("the role gives no tokens")
        return await fetch(identity, audiences)

    tokens.fetch_jwt_svid = refuse_the_first  # type: ignore[method-assign]

    answer = await stub.FetchJWTSVID(pb.JWTSVIDRequest(audience=["them"]), metadata=HEADER)

    assert [svid.hint for svid in answer.svids] == ["other"]


async def test_valid_token_is_told_with_its_claims_and_any_other_is_invalid_argument(
    stub: Any, identities: Identities
) -> None:
    publish(identities, WEB)
    token = OTHER.token("spiffe://other.example/app", ["them"], deep={"list": [1, None, "x"]})

    def ask(audience: str, svid: str) -> Any:
        return stub.ValidateJWTSVID(
            pb.ValidateJWTSVIDRequest(audience=audience, svid=svid), metadata=HEADER
        )

    answer = await ask("them", token)
    wrong = [
        await failure(ask("us", token)),
        await failure(ask("them", token[:-8] + "AAAAAAAA")),
        await failure(ask("", token)),
        await failure(ask("them", "")),
        await failure(ask("them", "x" * 100_000)),
        # A value that fits into no protobuf number.
        await failure(ask("them", OTHER.token("spiffe://other.example/app", ["them"], n=10**400))),
    ]

    assert answer.spiffe_id == "spiffe://other.example/app"
    assert answer.claims["sub"] == "spiffe://other.example/app"
    assert list(answer.claims["deep"]["list"]) == [1, None, "x"]
    for code, details in wrong:
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert token not in details


async def test_streams_that_nobody_reads_get_the_newest_picture_in_the_end(
    stub: Any, identities: Identities
) -> None:
    roots = (DOMAIN.root.certificate,) * 2000
    size = len(DOMAIN.root.certificate.public_bytes(Encoding.DER))
    publish(identities, WEB, bundles=[Bundle("example.org", roots)])
    slow, quick = x509_svids(stub), x509_svids(stub)
    for number in range(40):
        publish(identities, WEB, bundles=[Bundle("example.org", roots[number:])])
        # Everybody else goes on.
        while len((await quick.read()).svids[0].bundle) != size * (2000 - number):
            pass

    heard = 1
    while len((await slow.read()).svids[0].bundle) != size * (2000 - 39):
        heard += 1

    assert heard < 20
    slow.cancel()
    quick.cancel()


class Client:
    """The public client, in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, *question: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        await self._process.stdin.drain()
        answer = json.loads(await self._process.stdout.readline())
        return answer.get("answer", answer)


@contextlib.asynccontextmanager
async def public_client(address: str) -> AsyncIterator[Client]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        CLIENT,
        f"unix://{address.removeprefix('unix:')}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    asked = Client(process)
    yield asked
    await asked.ask("close")
    assert process.stdin
    process.stdin.close()
    await process.wait()


@pytest.fixture
async def client(address: str) -> AsyncIterator[Client]:
    async with public_client(address) as client:
        yield client


async def test_public_client_fetches_watches_a_renewal_and_gets_and_validates_tokens(
    client: Client, identities: Identities
) -> None:
    publish(identities, WEB, API)

    svids = await client.ask("svids")
    context = await client.ask("context")

    assert [one["spiffe_id"] for one in svids] == [WEB_ID, API_ID]
    assert all(one["key_fits"] and one["chain"] == 2 for one in svids)
    assert context["default"]["serial"] == WEB.certificate.serial_number
    assert context["roots"] == {"example.org": 1, "other.example": 1}
    assert await client.ask("bundles") == {"example.org": 1, "other.example": 1}
    assert await client.ask("jwt_bundles") == {"example.org": ["one"], "other.example": ["one"]}

    watched = await client.ask("watch")
    assert watched["serial"] == WEB.certificate.serial_number
    publish(identities, RENEWED, API, bundles=[DOMAIN.bundle(OTHER.root)])
    renewed = await client.ask("next", watched["serial"])
    assert renewed["serial"] == RENEWED.certificate.serial_number
    assert renewed["key_fits"]
    assert renewed["roots"] == 2

    token = await client.ask("jwt", "them", API_ID)
    assert token["spiffe_id"] == API_ID
    assert await client.ask("validate", token["token"], "them") == {"spiffe_id": API_ID}
    assert "INVALID_ARGUMENT" in (await client.ask("validate", token["token"], "us"))["error"]


async def test_public_client_waits_for_an_agent_that_starts_and_outlives_its_restart(
    tmp_path: Path, identities: Identities
) -> None:
    async with contextlib.AsyncExitStack() as client_of_two_agents:
        async with served(tmp_path / "run", identities) as address:
            client = await client_of_two_agents.enter_async_context(public_client(address))
            waiting = asyncio.create_task(client.ask("watch"))
            # Its first attempt finds no picture; it tries again by itself.
            assert not waiting.done()
            publish(identities, WEB)
            first = await waiting
        # Stopped, and started again with a newer certificate.
        publish(identities, RENEWED)
        async with served(tmp_path / "run", identities):
            second = await client.ask("next", first["serial"])

            await client_of_two_agents.aclose()

    assert first["serial"] == WEB.certificate.serial_number
    assert second["serial"] == RENEWED.certificate.serial_number
