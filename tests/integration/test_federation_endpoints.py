"""Bundle endpoints that lie, stall, redirect or go backwards: the bundle before always stays."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from meshmint_server.authority import BundleFetcher, FederatedBundles, Federation, bundle_fetch
from meshmint_server.authority.federation import forget_removed
from meshmint_server.errors import Unavailable
from meshmint_server.spiffe import JwtKey, SpiffeId, TrustBundle, TrustDomain
from meshmint_server.store import Store
from support.bundle_endpoint import Behaviour, Endpoint, answer, leaf_of, tls_context
from support.pki import Authority, make_root, pem

OTHER = TrustDomain("other.example")
SERVER = SpiffeId.parse("spiffe://other.example/bundle")
ROOT = make_root()
NEXT_ROOT = make_root()


def document(*roots: Authority, sequence: int = 5) -> bytes:
    ders = tuple(one.certificate.public_bytes(Encoding.DER) for one in roots)
    return TrustBundle(OTHER, ders, sequence, timedelta(minutes=5)).document


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = Store.open(store_url)
    await store.migrate()
    yield store
    await store.close()


@pytest.fixture
def bootstrap(tmp_path: Path) -> Path:
    path = tmp_path / "other.json"
    path.write_bytes(document(ROOT))
    return path


def over_spiffe(url: str, bootstrap: Path) -> Federation:
    return Federation(OTHER, url, endpoint_spiffe_id=SERVER, bundle_file=bootstrap)


async def fetch(store: Store, federation: Federation) -> str:
    """One attempt by a new leader: what it complained of, or nothing."""
    with structlog.testing.capture_logs() as lines:
        await BundleFetcher(federation, store).keep_fresh()
    return "".join(line.get("problem", "") for line in lines)


async def kept(store: Store) -> tuple[bytes, ...]:
    """The roots that a worker hands out."""
    bundles = FederatedBundles(store, [Federation(OTHER, "")])
    await bundles.refresh()
    return bundles.get(OTHER).roots


def der(*roots: Authority) -> tuple[bytes, ...]:
    return tuple(one.certificate.public_bytes(Encoding.DER) for one in roots)


# --- the server is somebody else -----------------------------------------------------

STRANGER = make_root()
PAST = datetime.now(UTC) - timedelta(hours=1)
WRONG_SERVERS: dict[str, tuple[Callable[[], Authority], str]] = {
    "another SPIFFE ID": (lambda: leaf_of(ROOT, "spiffe://other.example/x"), "is not spiffe"),
    "a SPIFFE ID that begins alike": (lambda: leaf_of(ROOT, f"{SERVER}/more"), "is not spiffe"),
    "two SPIFFE IDs": (
        lambda: leaf_of(ROOT, str(SERVER), "spiffe://other.example/x"),
        "is not spiffe",
    ),
    "no SPIFFE ID": (lambda: leaf_of(ROOT), "is not spiffe"),
    "a CA": (lambda: leaf_of(ROOT, str(SERVER), is_ca=True), "of a CA"),
    "another root": (lambda: leaf_of(STRANGER, str(SERVER)), "does not verify"),
    "expired": (
        lambda: leaf_of(ROOT, str(SERVER), not_before=PAST - timedelta(hours=1), not_after=PAST),
        "expired",
    ),
}


@pytest.mark.parametrize("kind", WRONG_SERVERS)
async def test_a_wrong_server_is_not_even_asked(
    store: Store, tmp_path: Path, bootstrap: Path, kind: str
) -> None:
    make, problem = WRONG_SERVERS[kind]
    endpoint = Endpoint(answer(document(ROOT, STRANGER, sequence=6)))
    async with endpoint.serve(tls_context(make(), tmp_path)):
        assert problem in await fetch(store, over_spiffe(endpoint.url, bootstrap))

    assert endpoint.requests == []
    with pytest.raises(Unavailable):
        await kept(store)


async def test_plain_http_is_no_endpoint(store: Store, bootstrap: Path) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await answer(document(ROOT))(writer)
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        assert "TLS failed" in await fetch(store, over_spiffe(url, bootstrap))


async def test_web_profile_needs_the_hosts_name_and_the_right_ca(
    store: Store, tmp_path: Path
) -> None:
    ca, empty = tmp_path / "ca.pem", tmp_path / "empty.pem"
    ca.write_bytes(pem(ROOT.certificate))
    empty.write_bytes(b"")
    endpoint = Endpoint(answer(document(ROOT)))
    async with endpoint.serve(tls_context(leaf_of(ROOT), tmp_path)):
        elsewhere = endpoint.url.replace("127.0.0.1", "127.0.0.2")
        assert await fetch(store, Federation(OTHER, elsewhere, ca_file=ca))
        assert "does not verify" in await fetch(store, Federation(OTHER, endpoint.url))
        assert "no certificates" in await fetch(
            store, Federation(OTHER, endpoint.url, ca_file=empty)
        )
        assert endpoint.requests == []
        assert await fetch(store, Federation(OTHER, endpoint.url, ca_file=ca)) == ""
    assert await kept(store) == der(ROOT)


# --- the right server, and a wrong answer --------------------------------------------


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def stay_silent(_writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def flood(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" " * 65536)
        await writer.drain()


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    await writer.drain()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def redirect(to: str, status: str = "302 Found") -> Behaviour:
    return answer(b"", f"Location: {to}", status=status)


FOREIGN = make_root(
    replace=[
        (
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://mesh.example")]),
            False,
        )
    ]
)


def with_jwt_key(sequence: int, **changes: object) -> bytes:
    """The bundle with a key for JWT-SVIDs, whose members are changed."""
    members = json.loads(document(ROOT, sequence=sequence))
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    members["keys"].append({**JwtKey("k1", info).jwk("jwt-svid"), **changes})
    return json.dumps(members).encode()


WRONG_ANSWERS: dict[str, tuple[Behaviour, str]] = {
    "a byte now and then": (drip, "did not answer within"),
    "silence": (stay_silent, "did not answer within"),
    "no end": (flood, "larger than"),
    "too large": (answer(b" " * 1_048_577), "larger than"),
    "gzip bomb": (
        answer(gzip.compress(b" " * 50_000_000), "Content-Encoding: gzip"),
        "compresses",
    ),
    "reset": (reset, "the connection failed"),
    "no HTTP": (answer(b"", status="nonsense"), "the connection failed"),
    "endless header": (answer(b"", "X: " + "x" * 500_000), "the connection failed"),
    "HTML": (answer(b"<html>"), "not JSON"),
    "an error": (answer(document(NEXT_ROOT), status="503 Nope"), "HTTP 503"),
    "no keys": (answer(b"{}"), "no array 'keys'"),
    "a number without end": (
        answer(b'{"keys": [], "spiffe_sequence": ' + b"9" * 9000 + b"}"),
        "not JSON",
    ),
    "a number that no database holds": (
        answer(json.dumps({"keys": [], "spiffe_sequence": 2**64 - 1}).encode()),
        "spiffe_sequence",
    ),
    "roots of ours": (answer(document(FOREIGN, sequence=9)), "another trust domain"),
    "backwards": (answer(document(NEXT_ROOT, sequence=4)), "went backwards"),
    "no sequence any more": (answer(b'{"keys": []}'), "went backwards"),
    "the same sequence": (answer(document(NEXT_ROOT, sequence=5)), "other roots"),
    "a key under the same sequence": (answer(with_jwt_key(5)), "other roots or keys"),
    "a key without a kid": (answer(with_jwt_key(6, kid=None)), "no 'kid'"),
    "redirect to http": (redirect("http://127.0.0.1:1/"), "no https URL"),
    "redirect to a user": (redirect("https://me@127.0.0.1:1/"), "no https URL"),
    "redirect to nowhere": (redirect("https://["), "no https URL"),
    "redirect to a port that is none": (redirect("https://127.0.0.1:99999/"), "no https URL"),
    "redirect without a target": (answer(b"", status="302 Found"), "no https URL"),
    "redirect for ever": (redirect("/bundle"), "more than 3 times"),
    "permanent redirect": (redirect("/bundle", "301 Moved"), "HTTP 301"),
}


@pytest.fixture
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_fetch, "_SECONDS", 1.0)


@pytest.mark.usefixtures("_short_patience")
@pytest.mark.parametrize("store_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("kind", WRONG_ANSWERS)
async def test_the_bundle_before_stays_and_the_log_says_why(
    store: Store, tmp_path: Path, bootstrap: Path, kind: str
) -> None:
    behave, problem = WRONG_ANSWERS[kind]
    endpoint = Endpoint(answer(document(ROOT)))
    async with endpoint.serve(tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)):
        federation = over_spiffe(endpoint.url, bootstrap)
        assert await fetch(store, federation) == ""
        endpoint.behave = behave

        assert problem in await fetch(store, federation)
        assert await kept(store) == der(ROOT)

        # And nothing is broken for good.
        endpoint.behave = answer(document(ROOT, NEXT_ROOT, sequence=6))
        assert await fetch(store, federation) == ""
        assert await kept(store) == der(ROOT, NEXT_ROOT)


async def test_temporary_redirects_lead_to_the_same_server_only(
    store: Store, tmp_path: Path, bootstrap: Path
) -> None:
    target, stranger = Endpoint(answer(document(ROOT))), Endpoint(answer(document(ROOT)))
    source = Endpoint(answer(b""))
    right = tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)
    wrong = tls_context(leaf_of(ROOT, "spiffe://other.example/x"), tmp_path)
    async with source.serve(right), target.serve(right), stranger.serve(wrong):
        source.behave = redirect(stranger.url, "307 Over There")
        assert "is not spiffe" in await fetch(store, over_spiffe(source.url, bootstrap))
        assert stranger.requests == []

        source.behave = redirect(target.url, "307 Over There")
        assert await fetch(store, over_spiffe(source.url, bootstrap)) == ""
    assert await kept(store) == der(ROOT)


# --- the right answer ----------------------------------------------------------------


async def test_a_fetched_bundle_verifies_its_own_server_from_then_on(
    store: Store, tmp_path: Path, bootstrap: Path
) -> None:
    endpoint = Endpoint(answer(document(NEXT_ROOT)))
    async with endpoint.serve(tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)):
        federation = over_spiffe(endpoint.url, bootstrap)
        assert await fetch(store, federation) == ""
        # The root of the bootstrap file is gone from the bundle: its server is nobody now.
        assert "does not verify" in await fetch(store, federation)
    async with endpoint.serve(tls_context(leaf_of(NEXT_ROOT, str(SERVER)), tmp_path)):
        assert await fetch(store, over_spiffe(endpoint.url, bootstrap)) == ""


async def test_a_bundle_without_roots_is_kept_and_trusts_nobody(
    store: Store, tmp_path: Path, bootstrap: Path
) -> None:
    endpoint = Endpoint(answer(document(sequence=6)))
    async with endpoint.serve(tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)):
        federation = over_spiffe(endpoint.url, bootstrap)
        assert await fetch(store, federation) == ""
        assert await kept(store) == ()
        assert "trusts nobody" in await fetch(store, federation)


async def test_a_bad_bootstrap_file_is_told(store: Store, bootstrap: Path) -> None:
    bootstrap.write_text("{}")
    assert "cannot be used" in await fetch(store, over_spiffe("https://127.0.0.1:1/", bootstrap))
    bootstrap.unlink()
    assert "cannot be read" in await fetch(store, over_spiffe("https://127.0.0.1:1/", bootstrap))


async def test_a_failure_is_told_once_and_so_is_its_end(
    store: Store, tmp_path: Path, bootstrap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshmint_server.authority.federation._LONGEST_RETRY", 0.0)
    endpoint = Endpoint(answer(b"{}"))
    async with endpoint.serve(tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)):
        fetcher = BundleFetcher(over_spiffe(endpoint.url, bootstrap), store)
        with structlog.testing.capture_logs() as lines:
            for body in (b"{}", b"{}", b"<html>", document(ROOT)):
                endpoint.behave = answer(body)
                await fetcher.keep_fresh()
        assert [line["log_level"] for line in lines] == ["warning", "warning", "info", "info"]
        # It is not time yet.
        await fetcher.keep_fresh()
        assert len(endpoint.requests) == 4


@pytest.mark.parametrize("is_first", [True, False])
async def test_slower_of_two_replicas_puts_no_older_bundle_over_a_newer_one(
    store: Store, tmp_path: Path, bootstrap: Path, is_first: bool
) -> None:
    slow, fast = Endpoint(answer(b"")), Endpoint(answer(document(NEXT_ROOT, sequence=7)))
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def late(writer: asyncio.StreamWriter) -> None:
        is_asked.set()
        await may_answer.wait()
        await answer(document(ROOT, sequence=6))(writer)

    context = tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)
    async with slow.serve(context), fast.serve(context):
        if not is_first:
            fast.behave = answer(document(ROOT, sequence=5))
            await fetch(store, over_spiffe(fast.url, bootstrap))
        slow.behave, fast.behave = late, answer(document(NEXT_ROOT, sequence=7))
        slower = BundleFetcher(over_spiffe(slow.url, bootstrap), store)
        outrun = asyncio.create_task(slower.keep_fresh())
        await is_asked.wait()
        assert await fetch(store, over_spiffe(fast.url, bootstrap)) == ""
        may_answer.set()
        await outrun

    assert await kept(store) == der(NEXT_ROOT)
    _, (row,) = await store.load_federated_bundles()
    assert row.sequence == 7


async def test_the_last_failure_is_on_record_until_a_bundle_comes_or_it_is_forgotten(
    store: Store, tmp_path: Path, bootstrap: Path
) -> None:
    endpoint = Endpoint(answer(b"{}"))
    async with endpoint.serve(tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)):
        federation = over_spiffe(endpoint.url, bootstrap)
        await fetch(store, federation)
        endpoint.behave = answer(b"<html>")
        problem = await fetch(store, federation)
        (failure,) = await store.list_fetch_failures()
        assert (failure.trust_domain, failure.problem) == (str(OTHER), problem)
        await forget_removed(store, [federation])
        assert await store.list_fetch_failures() == (failure,)
        await forget_removed(store, [])
        assert await store.list_fetch_failures() == ()

        await fetch(store, federation)
        endpoint.behave = answer(document(ROOT))
        await fetch(store, federation)
        assert await store.list_fetch_failures() == ()


async def test_what_is_not_federated_with_any_more_is_forgotten(
    store: Store, tmp_path: Path, bootstrap: Path
) -> None:
    endpoint = Endpoint(answer(document(ROOT)))
    async with endpoint.serve(tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)):
        federation = over_spiffe(endpoint.url, bootstrap)
        await fetch(store, federation)
    await forget_removed(store, [federation])
    assert await kept(store) == der(ROOT)

    await forget_removed(store, [])

    with pytest.raises(Unavailable):
        await kept(store)


async def test_a_bundle_that_did_not_change_wakes_nobody_up_with_news(
    store: Store, tmp_path: Path, bootstrap: Path
) -> None:
    endpoint = Endpoint(answer(document(ROOT)))
    bundles = FederatedBundles(store, [Federation(OTHER, "")])
    async with endpoint.serve(tls_context(leaf_of(ROOT, str(SERVER)), tmp_path)):
        federation = over_spiffe(endpoint.url, bootstrap)
        await fetch(store, federation)
        await bundles.refresh()
        before = bundles.get(OTHER)
        await fetch(store, federation)
        await bundles.refresh()
    assert bundles.get(OTHER) is before
