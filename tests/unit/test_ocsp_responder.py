"""The responder with a real store: what it keeps, what it drops, and what it does not know."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import ocsp
from meshmint_server.audit import AuditLog
from meshmint_server.authority import Issuer
from meshmint_server.authority.ocsp import Answer, OcspResponder
from meshmint_server.errors import KeyUnavailable, StoreUnavailable
from meshmint_server.issuance import Mint, ResponderCertificates, RoleBook
from meshmint_server.policy import Bounds
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import RecordRow, RevocationRow, Store
from support.ocsp import request_for
from support.rows import record_row
from support.software_key import SoftwareKey, software_issuer

HOUR = timedelta(hours=1)
PATIENCE = 10.0


@dataclass
class Clock:
    """What time it is."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __call__(self) -> datetime:
        return self.now


class Issuers:
    """An issuer book whose issuers are put in by hand."""

    revision = 1

    def __init__(self, *issuers: Issuer) -> None:
        self.issuers = issuers

    def published(self) -> tuple[Issuer, ...]:
        return self.issuers


class CountedStore:
    """The store, with its look-ups counted, held up, or failing."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lookups = 0
        self.looks = 0
        self.look_gate = asyncio.Event()
        self.look_gate.set()
        self.is_away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.has_read = asyncio.Event()

    def _check(self) -> None:
        if self.is_away:
            raise StoreUnavailable("The database does not answer.")

    async def get_revocation(self, serial: str) -> RevocationRow | None:
        self.lookups += 1
        self._check()
        return await self.store.get_revocation(serial)

    async def get_record(self, serial: str) -> RecordRow | None:
        found = await self.store.get_record(serial)
        self.has_read.set()
        await self.gate.wait()
        return found

    async def latest_revocation(self) -> int:
        self.looks += 1
        self._check()
        found = await self.store.latest_revocation()
        await self.look_gate.wait()
        return found

    async def revocations_after(self, sequence: int, limit: int) -> object:
        self._check()
        return await self.store.revocations_after(sequence, limit)


@dataclass
class World:
    clock: Clock
    key: SoftwareKey
    issuer: Issuer
    store: CountedStore
    responder: OcspResponder
    certificates: ResponderCertificates
    monotonic: list[float]

    async def issue(self) -> int:
        """A certificate on record; its serial number."""
        row = record_row(issuer=self.issuer.name)
        await self.store.store.record(row)
        return int(row.serial_number, 16)

    async def revoke(self, serial: int) -> None:
        now = self.clock.now
        await self.store.store.revoke(
            RevocationRow(f"{serial:x}", self.issuer.name, 0, 1, now, now + HOUR, "", "", "0" * 32)
        )

    async def ask(self, serial: int, nonce: bytes | None = None) -> Answer:
        return await self.responder.answer(
            request_for(self.issuer.certificate, serial, nonce=nonce)
        )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    store = Store.open(f"sqlite:///{tmp_path}/meshmint.db")
    await store.migrate()
    clock, key, monotonic = Clock(), SoftwareKey(), [0.0]
    issuer = software_issuer(key, timedelta(days=30))
    issuers = Issuers(issuer)
    counted = CountedStore(store)
    responder = OcspResponder(
        issuers, counted, lifetime=HOUR, max_cached=2, clock=clock,
        monotonic=lambda: monotonic[0],
    )  # type: ignore[arg-type]  # fmt: skip
    mint = Mint(
        roles=RoleBook(store), issuers=issuers, store=store, audit=AuditLog(), clock=clock,
        bounds=Bounds(TrustDomain("mesh.example"), HOUR, HOUR),
    )  # type: ignore[arg-type]  # fmt: skip
    certificates = ResponderCertificates(
        mint, issuers, responder.appoint, lifetime=24 * HOUR, clock=clock
    )  # type: ignore[arg-type]
    await certificates.renew()
    await responder.feed.refresh()
    yield World(clock, key, issuer, counted, responder, certificates, monotonic)
    mint.close()
    await store.close()


# --- the cache -------------------------------------------------------------------------


async def test_an_answer_is_given_again_until_half_of_its_time(world: World) -> None:
    serial = await world.issue()
    first = await world.ask(serial)
    assert first.outcome == "good"
    assert await world.ask(serial) is first
    world.clock.now += HOUR / 2
    world.monotonic[0] += 1
    second = await world.ask(serial)
    assert second.this_update > first.this_update  # type: ignore[operator]
    assert world.store.lookups == 2


async def test_an_answer_from_the_future_is_not_given_when_the_clock_is_set_back(
    world: World,
) -> None:
    serial = await world.issue()
    first = await world.ask(serial)
    world.clock.now -= timedelta(seconds=20)
    second = await world.ask(serial)
    assert second.this_update < first.this_update  # type: ignore[operator]


async def test_revocation_drops_what_is_cached_and_comes_out_at_once(world: World) -> None:
    serial, other = await world.issue(), await world.issue()
    kept = await world.ask(other)
    assert (await world.ask(serial)).outcome == "good"
    await world.revoke(serial)
    assert (await world.ask(serial)).outcome == "revoked"
    assert await world.ask(other) is kept


async def test_a_look_for_revocations_that_began_before_one_is_not_believed(world: World) -> None:
    serial = await world.issue()
    assert (await world.ask(serial)).outcome == "good"
    looks = world.store.looks
    world.store.look_gate.clear()
    early = asyncio.create_task(world.ask(serial))
    while world.store.looks == looks:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # so it has read, and waits behind the gate
    await world.revoke(serial)
    late = [asyncio.create_task(world.ask(serial)) for _ in range(10)]
    await asyncio.sleep(0.01)
    world.store.look_gate.set()
    assert (await early).outcome == "good"
    assert {(await one).outcome for one in late} == {"revoked"}
    assert world.store.looks == looks + 2


async def test_nobody_waits_a_second_time_for_a_store_that_hangs(world: World) -> None:
    serial = await world.issue()
    assert (await world.ask(serial)).outcome == "good"
    world.store.look_gate.clear()
    assert (await world.ask(serial)).outcome == "good"
    looks = world.store.looks
    assert (await world.ask(serial)).outcome == "good"
    assert world.store.looks == looks
    world.store.look_gate.set()
    await world.responder.feed.refresh()
    await world.revoke(serial)
    assert (await world.ask(serial)).outcome == "revoked"


async def test_revocation_during_a_look_up_leaves_nothing_good_behind(world: World) -> None:
    serial = await world.issue()
    world.store.gate.clear()
    asked = asyncio.create_task(world.ask(serial))
    await world.store.has_read.wait()
    await world.revoke(serial)
    world.store.gate.set()
    await asked
    assert (await world.ask(serial)).outcome == "revoked"


async def test_those_who_ask_the_same_at_once_share_one_look_up_and_one_answer(
    world: World,
) -> None:
    serial = await world.issue()
    answers = await asyncio.gather(*(world.ask(serial) for _ in range(20)))
    assert world.store.lookups == 1
    assert len(set(map(id, answers))) == 1


async def test_look_ups_at_a_time_are_limited_and_the_rest_is_told_to_come_again(
    world: World,
) -> None:
    world.store.gate.clear()
    asked = [asyncio.create_task(world.ask(serial)) for serial in range(1, 101)]
    while sum(task.done() for task in asked) < 68:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    world.store.gate.set()
    outcomes = [(await task).outcome for task in asked]
    assert outcomes.count("try_later") == 68
    assert outcomes.count("unknown") == 32
    assert world.store.lookups == 32


async def test_what_is_unknown_is_not_kept_and_pushes_nothing_out(world: World) -> None:
    serial = await world.issue()
    first = await world.ask(serial)
    for made_up in range(1, 20):
        assert (await world.ask(made_up)).outcome == "unknown"
    assert await world.ask(serial) is first
    row = record_row(issuer=world.issuer.name, serial_number="7")
    await world.store.store.record(row)
    assert (await world.ask(7)).outcome == "good"


async def test_the_cache_is_bounded(world: World) -> None:
    serials = [await world.issue() for _ in range(3)]
    first = [await world.ask(serial) for serial in serials]
    assert await world.ask(serials[2]) is first[2]
    assert await world.ask(serials[0]) is not first[0]


async def test_a_nonce_is_answered_from_what_is_known_and_never_cached(world: World) -> None:
    serial = await world.issue()
    plain = await world.ask(serial)
    nonced = await world.ask(serial, b"n" * 16)
    assert nonced.fresh_until is None
    assert await world.ask(serial, b"n" * 16) is not nonced
    assert await world.ask(serial) is plain
    assert world.store.lookups == 1


# --- a store that is away --------------------------------------------------------------


async def test_without_the_store_good_is_said_for_seconds_and_revoked_for_longer(
    world: World,
) -> None:
    serial, gone = await world.issue(), await world.issue()
    await world.revoke(gone)
    assert (await world.ask(serial)).outcome == "good"
    assert (await world.ask(gone)).outcome == "revoked"
    world.store.is_away = True
    world.monotonic[0] += PATIENCE - 0.1
    assert (await world.ask(serial)).outcome == "good"
    world.monotonic[0] += 0.2
    assert (await world.ask(serial)).outcome == "try_later"
    assert (await world.ask(serial, b"nonce")).outcome == "try_later"
    assert (await world.ask(gone)).outcome == "revoked"
    assert (await world.ask(5)).outcome == "try_later"
    world.store.is_away = False
    await world.responder.feed.refresh()
    assert (await world.ask(serial)).outcome == "good"


async def test_a_store_put_back_to_an_earlier_state_empties_the_cache(world: World) -> None:
    serial = await world.issue()
    for _ in range(3):
        await world.revoke(await world.issue())
    first = await world.ask(serial)
    world.responder.feed._position += 100
    await world.revoke(serial)
    assert first.outcome == "good"
    assert (await world.ask(serial)).outcome == "revoked"


# --- delegates -------------------------------------------------------------------------


async def test_delegate_is_renewed_at_two_thirds_and_not_before(world: World) -> None:
    serial = await world.issue()
    signatures = world.key.signatures
    world.clock.now += timedelta(hours=15)
    await world.certificates.renew()
    assert world.key.signatures == signatures
    world.clock.now += timedelta(hours=2)
    await world.certificates.renew()
    assert world.key.signatures == signatures + 1
    assert (await world.ask(serial)).outcome == "good"


@pytest.mark.parametrize("step", [timedelta(hours=25), timedelta(hours=-2)])
async def test_after_a_clock_step_nothing_is_signed_with_a_delegate_that_is_not_valid(
    world: World, step: timedelta
) -> None:
    serial = await world.issue()
    world.clock.now += step
    assert (await world.ask(serial)).outcome == "try_later"
    await world.certificates.renew()
    assert (await world.ask(serial)).outcome == "good"


async def test_delegate_ends_with_its_issuer_and_so_do_its_answers(world: World) -> None:
    serial = await world.issue()
    end = world.issuer.not_after
    world.clock.now = end - timedelta(minutes=20)
    await world.certificates.renew()
    answer = await world.ask(serial)
    assert answer.next_update == answer.fresh_until == end
    certificate = ocsp.load_der_ocsp_response(answer.document).certificates[0]
    assert certificate.not_valid_after_utc == end
    signatures = world.key.signatures
    world.clock.now = end - timedelta(seconds=1)
    await world.certificates.renew()
    assert world.key.signatures == signatures  # nothing to gain
    world.clock.now = end
    assert (await world.ask(serial)).outcome == "unauthorized"


async def test_key_that_is_away_is_asked_again_and_the_old_delegate_serves_on(
    world: World,
) -> None:
    serial = await world.issue()
    world.clock.now += timedelta(hours=20)
    world.key.fault = KeyUnavailable("away")
    await world.certificates.renew()
    assert (await world.ask(serial)).outcome == "good"
    world.key.fault = None
    world.certificates._retry_at.clear()  # five seconds later
    signatures = world.key.signatures
    await world.certificates.renew()
    assert world.key.signatures == signatures + 1
