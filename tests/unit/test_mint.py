"""The one path: what fails on the way is never handed out, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authority import Issuer
from meshmint_server.errors import (
    DeadlineTooShort,
    IssuerExpired,
    IssuerNotReady,
    KeyUnavailable,
    MeshmintError,
    StoreUnavailable,
)
from meshmint_server.issuance import Deadline, Issued, Mint
from meshmint_server.issuance.subject_keys import SubjectKeys
from meshmint_server.policy import Bounds, Caller, CertificateRequest, KeyAlgorithm, Role, Validity
from meshmint_server.spiffe import SpiffeId, TrustDomain
from meshmint_server.store import RecordFilter, RecordRow, Store
from support.software_key import SoftwareKey, software_issuer

TRUST_DOMAIN = TrustDomain("mesh.example")
ORIGIN = Origin("0" * 32, "CertificateService/Issue", "ipv4:127.0.0.1:1")
CALLER = Caller(
    "cluster",
    "system:serviceaccount:shop:cart",
    {},
    SpiffeId.parse("spiffe://mesh.example/ns/shop/sa/cart"),
    datetime.now(UTC) + timedelta(hours=1),
)
ROLE = Role.from_document(
    {"name": "svid", "spiffe": "own", "key_type": "ec", "ttl": "1h", "callers": [{"subject": "*"}]}
)


class OneIssuer:
    """An issuer book with one issuer, or none."""

    def __init__(self, issuer: Issuer | None) -> None:
        self.issuer = issuer

    def signing(self, _name: str | None) -> Issuer:
        if self.issuer is None:
            raise IssuerNotReady("there is no active issuer")
        return self.issuer


class Roles:
    roles = {"svid": ROLE}  # noqa: RUF012


@dataclass
class World:
    """A mint with a key that can be made to fail, and a real store."""

    key: SoftwareKey
    issuers: OneIssuer
    store: Store
    mint: Mint
    troubles: list[str]

    async def issue(self, seconds: float = 10.0, **asked: object) -> Issued:
        return await self.mint.issue(
            CALLER,
            "svid",
            lambda: CertificateRequest(**asked),  # type: ignore[arg-type]
            origin=ORIGIN,
            deadline=Deadline.after(seconds),
        )

    async def recorded(self) -> int:
        return len((await self.store.list_records(RecordFilter())).items)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    key = SoftwareKey()
    issuer = software_issuer(key, timedelta(days=1))
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    await store.migrate()
    issuers = OneIssuer(issuer)
    troubles: list[str] = []
    mint = Mint(
        roles=Roles(),  # type: ignore[arg-type]
        issuers=issuers,  # type: ignore[arg-type]
        store=store,
        bounds=Bounds(TRUST_DOMAIN, timedelta(hours=1), timedelta(days=30)),
        audit=AuditLog(),
        on_key_trouble=lambda: troubles.append("key"),
    )
    yield World(key, issuers, store, mint, troubles)
    mint.close()
    await store.close()


async def test_what_is_handed_out_is_on_record(world: World) -> None:
    issued = await world.issue()
    assert not world.troubles
    row = await world.store.get_record(issued.serial_number)
    assert row is not None
    assert x509.load_der_x509_certificate(row.certificate) == x509.load_pem_x509_certificate(
        issued.certificate_pem.encode()
    )
    assert row.request_id == ORIGIN.request_id


async def test_wrong_signature_is_never_handed_out(world: World) -> None:
    world.key.is_lying = True
    with pytest.raises(KeyUnavailable) as caught:
        await world.issue()
    assert caught.value.retry_after is not None
    assert await world.recorded() == 0
    assert world.troubles


async def test_key_that_fails_leaves_nothing_behind(world: World) -> None:
    world.key.fault = KeyUnavailable("the token is gone")
    with pytest.raises(KeyUnavailable):
        await world.issue()
    assert await world.recorded() == 0
    assert world.troubles


async def test_store_that_fails_means_nothing_is_handed_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_row: RecordRow) -> None:
        raise StoreUnavailable("the store does not answer")

    monkeypatch.setattr(world.store, "record", fail)
    with pytest.raises(StoreUnavailable):
        await world.issue()


async def test_deadline_passed_while_signing_mints_nothing(world: World) -> None:
    world.key.delay = 5.0
    with pytest.raises(DeadlineTooShort):
        await world.issue(seconds=0.05)
    assert world.key.signatures == 0
    assert await world.recorded() == 0
    assert world.troubles


async def test_client_that_hangs_up_while_recording_still_leaves_a_record_and_its_log_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()
    record = world.store.record

    async def slow(row: RecordRow) -> bool:
        reached.set()
        await asyncio.sleep(0.1)
        return await record(row)

    monkeypatch.setattr(world.store, "record", slow)
    logged: list[str] = []
    monkeypatch.setattr(
        AuditLog, "granted", lambda _self, _origin, **facts: logged.append(facts["serial"])
    )
    call = asyncio.create_task(world.issue())
    await reached.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    while not logged:  # noqa: ASYNC110 - written after the record; the runner's limit ends it
        await asyncio.sleep(0.05)
    (row,) = (await world.store.list_records(RecordFilter())).items
    assert logged == [row.serial_number]


async def test_client_that_hangs_up_while_recording_keeps_its_turn_until_that_is_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever hangs up would have more of a slow store than a turn's worth."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    record = world.store.record

    async def slow(row: RecordRow) -> bool:
        reached.set()
        await go_on.wait()
        return await record(row)

    monkeypatch.setattr(world.store, "record", slow)
    call = asyncio.create_task(world.issue())
    await reached.wait()
    call.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert world.mint._admission.working == 1
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert world.mint._admission.working == 0
    assert await world.recorded() == 1


async def test_leaf_that_would_outlive_its_issuer_is_refused(world: World) -> None:
    with pytest.raises(IssuerExpired) as caught:
        await world.issue(validity=Validity(ttl=timedelta(days=2)))
    assert caught.value.reason == "ISSUER_EXPIRES_FIRST"
    assert world.key.signatures == 0


async def test_expired_issuer_signs_nothing(world: World) -> None:
    expired = world.key.certify(timedelta(seconds=-10))
    assert world.issuers.issuer is not None
    world.issuers.issuer = replace(
        world.issuers.issuer, certificate=expired, not_after=expired.not_valid_after_utc
    )
    with pytest.raises(IssuerExpired) as caught:
        await world.issue()
    assert caught.value.reason == "ISSUER_EXPIRED"
    assert world.key.signatures == 0


async def test_without_an_issuer_the_operator_is_told_what_to_do(world: World) -> None:
    world.issuers.issuer = None
    with pytest.raises(IssuerNotReady):
        await world.issue()


async def test_rsa_keys_are_made_for_a_bounded_number_of_callers() -> None:
    keys = SubjectKeys()
    waiting = [asyncio.create_task(keys.make(KeyAlgorithm.RSA_2048)) for _ in range(40)]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    refused = [o for o in outcomes if isinstance(o, MeshmintError)]
    assert {o.code for o in refused} == {"RESOURCE_EXHAUSTED"}
    assert 0 < len(refused) < 40
    keys.close()
