"""The trust bundle's document, and the feed that watchers hang on."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint_server.authority import FederatedBundles, TrustBundleFeed
from meshmint_server.errors import IssuerNotReady, Overloaded, Unavailable
from meshmint_server.spiffe import TrustBundle, TrustDomain
from support.pki import make_root, pem

TRUST_DOMAIN = TrustDomain("mesh.example")
KEYS: dict[str, Any] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
}


def bundle_of(*roots: x509.Certificate, sequence: int = 7) -> TrustBundle:
    ders = tuple(root.public_bytes(Encoding.DER) for root in roots)
    return TrustBundle(TRUST_DOMAIN, ders, sequence, timedelta(minutes=5))


def spki(key: Any) -> bytes:
    return bytes(key.public_bytes(Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def ed25519_root() -> x509.Certificate:
    key = ed25519.Ed25519PrivateKey.generate()
    model = make_root().certificate
    return (
        x509.CertificateBuilder()
        .subject_name(model.subject)
        .issuer_name(model.subject)
        .public_key(key.public_key())
        .serial_number(model.serial_number)
        .not_valid_before(model.not_valid_before_utc)
        .not_valid_after(model.not_valid_after_utc)
        .sign(key, None)
    )


@pytest.mark.parametrize("kind", [*KEYS, "Ed25519"])
def test_key_parameters_are_those_of_the_certificate(kind: str) -> None:
    """PyJWT's reader of JWKs is the second opinion."""
    root = ed25519_root() if kind == "Ed25519" else make_root(key=KEYS[kind]()).certificate

    (entry,) = json.loads(bundle_of(root).document)["keys"]

    (certificate,) = entry["x5c"]
    assert base64.b64decode(certificate, validate=True) == root.public_bytes(Encoding.DER)
    assert spki(jwt.PyJWK.from_dict(entry).key) == spki(root.public_key())
    assert entry["use"] == "x509-svid"
    assert "kid" not in entry
    assert all("=" not in entry[name] for name in ("x", "y", "n", "e") if name in entry)
    assert entry["kty"] == {"RSA": "RSA", "Ed25519": "OKP"}.get(kind, "EC")


def test_ec_coordinates_keep_their_leading_zeros() -> None:
    """RFC 7518 section 6.2.1.2: one coordinate in 256 has one."""
    for name in ("x", "y"):
        key = next(
            key
            for key in (ec.derive_private_key(n, ec.SECP256R1()) for n in range(2, 9000))
            if getattr(key.public_key().public_numbers(), name).bit_length() <= 248
        )
        (entry,) = json.loads(bundle_of(make_root(key=key).certificate).document)["keys"]

        assert len(entry["x"]) == len(entry["y"]) == 43


def test_sequence_and_refresh_hint_are_whole_numbers() -> None:
    document = json.loads(bundle_of(make_root().certificate).document)

    assert document["spiffe_sequence"] == 7
    assert document["spiffe_refresh_hint"] == 300
    assert set(document) == {"keys", "spiffe_sequence", "spiffe_refresh_hint"}


def test_roots_keep_their_order_in_both_forms() -> None:
    roots = [make_root().certificate for _ in range(3)]
    bundle = bundle_of(*roots)

    assert bundle.roots_pem == tuple(pem(root).decode() for root in roots)
    found = [entry["x5c"][0] for entry in json.loads(bundle.document)["keys"]]
    assert [base64.b64decode(one) for one in found] == list(bundle.roots)


def test_a_key_that_has_no_jwk_is_refused() -> None:
    root = make_root(key=ec.generate_private_key(ec.SECP256K1())).certificate

    with pytest.raises(ValueError, match="neither RSA"):
        _ = bundle_of(root).document


class Issuers:
    """As much of an IssuerBook as the feed looks at."""

    def __init__(self, *roots: x509.Certificate) -> None:
        self.revision = 1
        self.changed = asyncio.Event()
        self.roots = roots

    def published(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(roots_pem=(pem(root).decode(),)) for root in self.roots]

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def change(self, *roots: x509.Certificate) -> None:
        self.roots = roots
        self.revision += 1
        self.wake()


def feed_of(issuers: Issuers, limit: int = 10) -> TrustBundleFeed:
    return TrustBundleFeed(
        issuers,  # type: ignore[arg-type]
        FederatedBundles(None, ()),  # type: ignore[arg-type]  # never asked without federations
        TRUST_DOMAIN,
        refresh_hint=timedelta(minutes=1),
        limit=limit,
    )


async def test_a_watch_begins_with_the_present_bundle_and_tells_each_change() -> None:
    first, second = (make_root().certificate for _ in range(2))
    issuers = Issuers(first)
    watch = feed_of(issuers).watch()

    assert (await anext(watch)).roots == bundle_of(first).roots
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    issuers.change(first, second)

    bundle = await asyncio.wait_for(waiting, 1)
    assert bundle.roots == bundle_of(first, second).roots
    assert bundle.sequence == 2
    await watch.aclose()


async def test_a_slow_reader_gets_only_the_newest() -> None:
    issuers = Issuers(make_root().certificate)
    watch = feed_of(issuers).watch()
    await anext(watch)

    for _ in range(5):
        issuers.change(make_root().certificate)

    assert (await anext(watch)).sequence == 6
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(watch), 0.05)


async def test_roots_that_issuers_share_stand_once() -> None:
    root = make_root().certificate

    assert feed_of(Issuers(root, root)).current().roots == bundle_of(root).roots


async def test_without_a_root_there_is_no_bundle() -> None:
    """An empty one would say that nobody is to be trusted any more."""
    feed = feed_of(Issuers())

    with pytest.raises(IssuerNotReady):
        feed.current()
    with pytest.raises(IssuerNotReady):
        await anext(feed.watch())


async def test_one_watcher_too_many_is_turned_away_until_another_leaves() -> None:
    feed = feed_of(Issuers(make_root().certificate), limit=1)
    watch = feed.watch()
    await anext(watch)

    with pytest.raises(Overloaded) as caught:
        await anext(feed.watch())
    assert caught.value.retry_after
    await watch.aclose()

    await anext(feed.watch())


async def test_the_end_of_the_feed_ends_watches_that_wait_and_those_that_come() -> None:
    feed = feed_of(Issuers(make_root().certificate))
    watch = feed.watch()
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)

    feed.close()

    for ended in (waiting, anext(feed.watch())):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(ended, 1)


def test_the_fingerprints_of_the_document_are_the_roots() -> None:
    """The way an operator compares a bundle with the ceremony's notes."""
    root = make_root().certificate
    (entry,) = json.loads(bundle_of(root).document)["keys"]

    read = x509.load_der_x509_certificate(base64.b64decode(entry["x5c"][0]))
    assert read.fingerprint(hashes.SHA256()) == root.fingerprint(hashes.SHA256())
