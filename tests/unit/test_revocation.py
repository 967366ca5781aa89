"""Who may revoke which certificate, and what comes of it, in both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authority import Issuer
from meshmint_server.authority.ocsp import RESPONDER_ROLE
from meshmint_server.errors import (
    InvalidRequest,
    IssuerNotReady,
    NotFound,
    Overloaded,
    PermissionDenied,
    PreconditionFailed,
    StoreUnavailable,
)
from meshmint_server.issuance import (
    Administrators,
    RevocationReason,
    RevocationRequest,
    Revoked,
    Revoker,
)
from meshmint_server.issuance.possession import statement
from meshmint_server.policy import Caller, CallerMatcher
from meshmint_server.store import Store
from support.leaves import make_issuer, make_leaf, to_der
from support.pki import Authority, make_root
from support.rows import record_row

COMPROMISED = RevocationReason.KEY_COMPROMISE


def caller(subject: str, authenticator: str = "cluster") -> Caller:
    return Caller(authenticator, subject, {}, None, datetime.now(UTC) + timedelta(hours=1))


ADMIN, CART, EVE = caller("admin"), caller("cart"), caller("eve")


class Issuers:
    """Issuers that are published, and what another replica has published a moment ago."""

    def __init__(self, *issuers: Issuer) -> None:
        self._issuers = {issuer.name: issuer for issuer in issuers}
        self.unseen: list[Issuer] = []

    async def look_again(self) -> None:
        self._issuers |= {issuer.name: issuer for issuer in self.unseen}

    def published(self) -> tuple[Issuer, ...]:
        return tuple(self._issuers.values())

    def get(self, name: str) -> Issuer:
        try:
            return self._issuers[name]
        except KeyError:
            raise IssuerNotReady("there is none") from None


@dataclass
class World:
    """A revoker over a real store, and an authority in memory behind its issuer."""

    store: Store
    authority: Authority
    revoker: Revoker
    requests: int = 0

    async def recorded(self, certificate: x509.Certificate | None = None, **row: Any) -> str:
        """Puts a certificate on record as cart's; returns its serial number."""
        certificate = certificate or make_leaf(self.authority)
        serial = f"{certificate.serial_number:x}"
        now = datetime.now(UTC)
        values: dict[str, Any] = {
            "serial_number": serial,
            "certificate": to_der(certificate),
            "issuer": "one",
            "caller": "cart",
            "created_at": now,
            "not_after": now + timedelta(hours=1),
        }
        await self.store.record(record_row(**{**values, **row}))
        return serial

    async def revoke(
        self,
        who: Caller | None,
        target: str | x509.Certificate,
        reason: RevocationReason = COMPROMISED,
        proof: bytes = b"",
    ) -> Revoked:
        self.requests += 1
        origin = Origin(f"{self.requests:032x}", "CertificateService/Revoke", "ipv4:127.0.0.1:1")
        return await self.revoker.revoke(
            who, lambda: RevocationRequest(target, reason, proof), origin
        )


def make_world(store: Store, authority: Authority, *more: Issuer) -> World:
    revoker = Revoker(
        admins=Administrators([CallerMatcher(subject="admin")]),
        store=store,
        issuers=Issuers(make_issuer(authority, crl_shards=4), *more),  # type: ignore[arg-type]
        audit=AuditLog(),
    )
    return World(store, authority, revoker)


@pytest.fixture
async def world(store_url: str) -> AsyncIterator[World]:
    store = Store.open(store_url)
    await store.migrate()
    yield make_world(store, make_root().make_intermediate())
    await store.close()


async def test_an_administrator_revokes_by_serial_and_the_row_holds_everything(
    world: World,
) -> None:
    serial = await world.recorded()
    revoked = await world.revoke(ADMIN, serial)
    assert not revoked.already_revoked
    row = await world.store.get_revocation(serial)
    assert row == revoked.revocation
    assert (row.issuer, row.shard, row.reason) == ("one", int(serial, 16) % 4, 1)
    assert (row.authenticator, row.caller) == ("cluster", "admin")
    record = await world.store.get_record(serial)
    assert record is not None
    assert row.not_after == record.not_after


async def test_the_caller_it_was_issued_to_revokes_by_serial_and_by_certificate(
    world: World,
) -> None:
    serial = await world.recorded()
    assert not (await world.revoke(CART, serial)).already_revoked
    leaf = make_leaf(world.authority)
    await world.recorded(leaf)
    assert not (await world.revoke(CART, leaf)).already_revoked


@pytest.mark.parametrize("who", [EVE, caller("cart", "other-authenticator")])
async def test_a_stranger_cannot_tell_a_foreign_certificate_from_none(
    world: World, who: Caller
) -> None:
    leaf, unknown = make_leaf(world.authority), make_leaf(world.authority)
    serial = await world.recorded(leaf)
    expired = await world.recorded(
        created_at=datetime.now(UTC) - timedelta(days=1),
        not_after=datetime.now(UTC) - timedelta(hours=1),
    )
    already = await world.recorded()
    await world.revoke(ADMIN, already)
    answers = set()
    for target in (serial, "1234", expired, already, leaf, unknown):
        with pytest.raises(PermissionDenied) as caught:
            await world.revoke(who, target)
        answers.add((caught.value.reason, caught.value.message, caught.value.violations))
    assert len(answers) == 1
    assert await world.store.get_revocation(serial) is None


@pytest.mark.parametrize(
    ("role", "subject"),
    [("meshmint-server", "meshmint-server"), (RESPONDER_ROLE, RESPONDER_ROLE)],
)
async def test_the_services_own_certificates_are_nobodys_but_the_administrators(
    world: World, role: str, subject: str
) -> None:
    serial = await world.recorded(role=role, authenticator="meshmint", caller=subject)
    # Whoever has named an authenticator like that.
    with pytest.raises(PermissionDenied):
        await world.revoke(caller(subject, "meshmint"), serial)
    assert not (await world.revoke(ADMIN, serial)).already_revoked


async def test_the_first_revocation_stands(world: World) -> None:
    serial = await world.recorded()
    first = await world.revoke(CART, serial, RevocationReason.SUPERSEDED)
    again = await world.revoke(ADMIN, serial, COMPROMISED)
    assert again == Revoked(first.revocation, already_revoked=True)


async def test_a_repetition_after_the_expiry_still_gets_the_first_revocation(
    world: World,
) -> None:
    leaf = make_leaf(world.authority)
    first = await world.revoke(ADMIN, leaf)
    world.revoker._clock = lambda: datetime.now(UTC) + timedelta(days=1)
    assert (await world.revoke(ADMIN, leaf)).revocation == first.revocation


async def test_of_many_at_once_one_is_first(world: World) -> None:
    serial = await world.recorded()
    outcomes = await asyncio.gather(*(world.revoke(ADMIN, serial) for _ in range(8)))
    assert sorted(outcome.already_revoked for outcome in outcomes) == [False] + [True] * 7
    assert len({outcome.revocation for outcome in outcomes}) == 1


async def test_without_a_record_the_certificate_itself_is_enough_for_an_administrator(
    world: World,
) -> None:
    leaf = make_leaf(world.authority)
    serial = f"{leaf.serial_number:x}"
    with pytest.raises(NotFound, match="no_store"):
        await world.revoke(ADMIN, serial)
    revoked = await world.revoke(ADMIN, leaf)
    assert revoked.revocation.not_after == leaf.not_valid_after_utc
    assert (await world.revoke(ADMIN, serial)).already_revoked


async def test_an_expired_certificate_is_not_revoked(world: World) -> None:
    leaf = make_leaf(world.authority, lifetime=-timedelta(minutes=1))
    with pytest.raises(PreconditionFailed) as caught:
        await world.revoke(ADMIN, leaf)
    assert caught.value.reason == "CERTIFICATE_EXPIRED"
    assert await world.store.latest_revocation() == 0


async def test_a_forged_certificate_with_somebodys_serial_revokes_nothing(world: World) -> None:
    leaf = make_leaf(world.authority)
    serial = await world.recorded(leaf)
    key = ec.generate_private_key(ec.SECP256R1())
    forger = make_root()
    forged = make_leaf(
        forger, key, serial_number=leaf.serial_number, issuer=world.authority.certificate.subject
    )
    proof = key.sign(statement(forged, COMPROMISED), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(NotFound, match="No issuer"):
        await world.revoke(None, forged, proof=proof)
    with pytest.raises(NotFound, match="No issuer"):
        await world.revoke(ADMIN, forged)
    assert await world.store.get_revocation(serial) is None


async def test_another_certificate_with_the_serial_of_one_on_record_revokes_nothing(
    world: World,
) -> None:
    other_authority = make_root()
    world = make_world(world.store, world.authority, make_issuer(other_authority, "two"))
    leaf = make_leaf(world.authority)
    serial = await world.recorded(leaf)
    key = ec.generate_private_key(ec.SECP256R1())
    for authority in (world.authority, other_authority):
        twin = make_leaf(authority, key, serial_number=leaf.serial_number)
        proof = key.sign(statement(twin, COMPROMISED), ec.ECDSA(hashes.SHA256()))
        for who, evidence in ((ADMIN, b""), (CART, b""), (None, proof)):
            with pytest.raises(NotFound, match="not the certificate on record"):
                await world.revoke(who, twin, proof=evidence)
    assert await world.store.get_revocation(serial) is None


async def test_a_revocation_of_another_issuers_certificate_is_not_taken_for_ones_own(
    world: World,
) -> None:
    other_authority = make_root()
    world = make_world(world.store, world.authority, make_issuer(other_authority, "two"))
    leaf = make_leaf(world.authority)
    await world.revoke(ADMIN, leaf)
    with pytest.raises(PreconditionFailed) as caught:
        await world.revoke(ADMIN, make_leaf(other_authority, serial_number=leaf.serial_number))
    assert caught.value.reason == "SERIAL_NUMBER_TAKEN"


async def test_a_ca_is_not_revoked_here(world: World) -> None:
    for certificate in (
        world.authority.certificate,
        make_leaf(world.authority, is_ca=True),
    ):
        with pytest.raises(InvalidRequest) as caught:
            await world.revoke(ADMIN, certificate)
        assert caught.value.reason == "CERTIFICATE_OF_CA"


async def test_nothing_is_revoked_for_an_issuer_that_is_gone(world: World) -> None:
    serial = await world.recorded(issuer="gone")
    with pytest.raises(PreconditionFailed) as caught:
        await world.revoke(ADMIN, serial)
    assert caught.value.reason == "ISSUER_NOT_PUBLISHED"


async def test_an_issuer_that_another_replica_published_a_moment_ago_is_known(
    world: World,
) -> None:
    for who in (ADMIN, CART, None):
        authority, key = make_root(), ec.generate_private_key(ec.SECP256R1())
        for by_serial in (True, False) if who else (False,):
            world.revoker._issuers = issuers = Issuers()  # type: ignore[assignment]
            issuers.unseen = [make_issuer(authority, "new")]
            leaf = make_leaf(authority, key)
            serial = await world.recorded(leaf, issuer="new")
            proof = (
                b"" if who else key.sign(statement(leaf, COMPROMISED), ec.ECDSA(hashes.SHA256()))
            )
            revoked = await world.revoke(who, serial if by_serial else leaf, proof=proof)
            assert revoked.revocation.issuer == "new"


Sign = Callable[[bytes], bytes]


def keys() -> list[tuple[Any, Callable[[Any], Sign]]]:
    def with_ecdsa(key: Any) -> Sign:
        return lambda data: key.sign(data, ec.ECDSA(hashes.SHA256()))

    def with_pkcs1(key: Any) -> Sign:
        return lambda data: key.sign(data, padding.PKCS1v15(), hashes.SHA256())

    return [
        (ec.generate_private_key(ec.SECP256R1()), with_ecdsa),
        (ec.generate_private_key(ec.SECP521R1()), with_ecdsa),
        (rsa.generate_private_key(65537, 2048), with_pkcs1),
        (ed25519.Ed25519PrivateKey.generate(), lambda key: key.sign),
    ]


async def test_whoever_has_the_private_key_needs_nothing_else(world: World) -> None:
    for key, signing in keys():
        leaf = make_leaf(world.authority, key)
        await world.recorded(leaf)
        sign = signing(key)
        right = sign(statement(leaf, COMPROMISED))
        other = make_leaf(world.authority, key)
        for wrong in (
            sign(statement(leaf, RevocationReason.SUPERSEDED)),
            sign(statement(other, COMPROMISED)),
            sign(statement(leaf, COMPROMISED)[:-1]),
            right[:-1],
            right + b"\0",
            b"x",
            bytes(5000),
        ):
            with pytest.raises(PermissionDenied) as caught:
                await world.revoke(None, leaf, proof=wrong)
            assert caught.value.reason == "PROOF_INVALID"
        revoked = await world.revoke(None, leaf, proof=right)
        assert not revoked.already_revoked
        row = revoked.revocation
        assert (row.authenticator, row.caller) == ("", "proof of possession")
        # Sent once more, by whoever saw it: nothing happens.
        assert await world.revoke(None, leaf, proof=right) == Revoked(row, already_revoked=True)


async def test_a_changed_encoding_of_a_signature_is_no_way_around_the_record(
    world: World,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    leaf = make_leaf(world.authority, key)
    await world.recorded(leaf)
    # Of an ECDSA signature (r, s), (r, -s) holds as well.
    r, s = decode_dss_signature(leaf.signature)
    mirrored = encode_dss_signature(r, order - s)
    der = to_der(leaf)
    body = der[4 : -len(leaf.signature) - 3] + bytes([3, len(mirrored) + 1, 0]) + mirrored
    twin = x509.load_der_x509_certificate(der[:2] + len(body).to_bytes(2, "big") + body)
    twin.verify_directly_issued_by(world.authority.certificate)
    proof = key.sign(statement(twin, COMPROMISED), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(NotFound, match="not the certificate on record"):
        await world.revoke(None, twin, proof=proof)


async def test_without_a_proof_nobody_in_particular_may_revoke_anything(world: World) -> None:
    leaf = make_leaf(world.authority)
    serial = await world.recorded(leaf)
    with pytest.raises(PermissionDenied):
        await world.revoke(None, leaf)
    with pytest.raises(InvalidRequest, match="needs the certificate itself"):
        await world.revoke(None, serial, proof=b"x")


async def test_a_strangers_request_does_not_reach_the_store(world: World) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = make_leaf(world.authority, key)
    forged = make_leaf(make_root(), key, issuer=world.authority.certificate.subject)
    await world.store.close()
    good = key.sign(statement(forged, COMPROMISED), ec.ECDSA(hashes.SHA256()))
    with pytest.raises(NotFound):
        await world.revoke(None, forged, proof=good)
    with pytest.raises(PermissionDenied):
        await world.revoke(None, leaf, proof=b"x" * 70)


async def test_granted_and_refused_are_written_down_with_the_serial(world: World) -> None:
    serial = await world.recorded()
    with structlog.testing.capture_logs() as lines:
        with pytest.raises(PermissionDenied):
            await world.revoke(EVE, serial)
        await world.revoke(CART, serial)
        await world.revoke(ADMIN, serial, RevocationReason.SUPERSEDED)
    refused, granted, again = lines
    assert (refused["decision"], refused["serial"], refused["caller"], refused["reason"]) == (
        "refused", serial, "eve", "REVOCATION_DENIED",
    )  # fmt: skip
    assert (granted["decision"], granted["serial"], granted["caller"], granted["reason"]) == (
        "granted", serial, "cart", "key_compromise",
    )  # fmt: skip
    assert (again["already_revoked"], again["reason"]) == (True, "key_compromise")


async def test_a_caller_that_hangs_up_leaves_a_revocation_with_its_line(world: World) -> None:
    serial = await world.recorded()
    with structlog.testing.capture_logs() as lines:
        task = asyncio.ensure_future(world.revoke(ADMIN, serial))
        writing = asyncio.Event()
        revoke = world.store.revoke

        async def watched(row: Any) -> Any:
            writing.set()
            return await revoke(row)

        world.store.revoke = watched  # type: ignore[method-assign]
        await writing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not lines:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert lines[0]["event"] == "certificate revoked"


async def test_a_flood_leaves_the_store_to_those_who_issue(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serials = [await world.recorded() for _ in range(12)]
    busy = most = 0
    look_up = world.store.look_up

    async def counted(serial: str) -> Any:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        try:
            await asyncio.sleep(0)
            return await look_up(serial)
        finally:
            busy -= 1

    monkeypatch.setattr(world.store, "look_up", counted)
    revokers = [world.revoke((ADMIN, CART)[i % 2], serial) for i, serial in enumerate(serials)]
    answers = await asyncio.gather(*revokers)
    assert not any(answer.already_revoked for answer in answers)
    # Of five connections; the most that ever wait for the lock of a writer, too.
    assert most == 3


async def test_no_flood_of_others_stands_before_an_administrator(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = await world.recorded()
    look_up, held = world.store.look_up, asyncio.Event()

    async def slow_for_others(asked: str) -> Any:
        if asked != serial:
            await held.wait()
        return await look_up(asked)

    monkeypatch.setattr(world.store, "look_up", slow_for_others)
    flood = [asyncio.create_task(world.revoke(CART, "1234")) for _ in range(1001)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await world.revoke(CART, serial)
    assert not (await world.revoke(ADMIN, serial)).already_revoked
    held.set()
    refused = await asyncio.gather(*flood, return_exceptions=True)
    assert {type(error) for error in refused} == {PermissionDenied}


async def test_a_store_that_is_gone_revokes_nothing_and_says_so(world: World) -> None:
    leaf = make_leaf(world.authority)
    unreachable = Store.open("postgresql://nobody@127.0.0.1:1/none")
    other = make_world(unreachable, world.authority)
    with pytest.raises(StoreUnavailable):
        await other.revoke(ADMIN, leaf)
    await unreachable.close()
