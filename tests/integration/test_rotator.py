"""The service's own part in the rotation: real stores, real keys, and a clock of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from meshmint_server.authority import (
    IssuerBook,
    RotationRules,
    Rotator,
    Succession,
    TrustBundleFeed,
    UpstreamCommand,
)
from meshmint_server.authority.federation import FederatedBundles
from meshmint_server.errors import MeshmintError, PreconditionFailed, StoreUnavailable, Unavailable
from meshmint_server.keys import KeyAlgorithmName, KeyRing, public_key_info
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerState, Store
from structlog.testing import capture_logs
from support.pki import make_root, pem
from support.rows import record_row

TRUST_DOMAIN = TrustDomain("mesh.example")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RULES = RotationRules(publish_for=HOUR, longest_leaf=DAY, has_upstream=True)


class Clock:
    """Both clocks of a machine."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.seconds = 1000.0

    def pass_(self, time: timedelta) -> None:
        self.now += time
        self.seconds += time.total_seconds()


class Root:
    """An upstream that signs for a hundred days, unless it is told otherwise."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.root = make_root()
        self.fault: MeshmintError | None = None
        self.asked: list[x509.CertificateSigningRequest] = []
        self.lifetime = 100 * DAY

    async def sign(self, csr: str) -> bytes:
        request = x509.load_pem_x509_csr(csr.encode())
        self.asked.append(request)
        if self.fault is not None:
            raise self.fault
        now = self.clock.now
        signed = self.root.sign(request, not_before=now, not_after=now + self.lifetime)
        return pem(signed, self.root.certificate)


class Machine:
    """One replica: a store, keys, and what it does by itself."""

    def __init__(
        self, store: Store, keyring: KeyRing, clock: Clock, upstream: Root | UpstreamCommand | None
    ) -> None:
        rules = RotationRules(publish_for=HOUR, longest_leaf=DAY, has_upstream=upstream is not None)
        self.store = store
        self.clock = clock
        self.succession = Succession(
            store,
            keyring,
            trust_domain=TRUST_DOMAIN,
            rules=rules,
            algorithm=KeyAlgorithmName.EC_P256,
            clock=lambda: clock.now,
        )
        self.rotator = Rotator(
            store,
            self.succession,
            rules,
            upstream,
            clock=lambda: clock.now,
            monotonic=lambda: clock.seconds,
        )

    async def states(self) -> dict[str, str]:
        _, rows = await self.store.load_issuers()
        return {row.name: row.state.value for row in rows}

    async def run_after(self, time: timedelta) -> list[str]:
        """Its issuers' states, in order of age."""
        self.clock.pass_(time)
        await self.rotator.run()
        _, rows = await self.store.load_issuers()
        return [row.state.value for row in sorted(rows, key=lambda row: row.created_at)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    async def same(_: Store) -> datetime:
        return clock.now

    # The database's clock cannot be set; it agrees with the test's.
    monkeypatch.setattr(Store, "clock", same)
    return clock


@pytest.fixture
def upstream(clock: Clock) -> Root:
    return Root(clock)


@pytest.fixture
async def machines(
    store_url: str, tmp_path: Path, clock: Clock, upstream: Root
) -> AsyncIterator[tuple[Machine, Machine]]:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase of this test\n")
    passphrase.chmod(0o600)
    (tmp_path / "keys").mkdir(0o700)
    keyring = KeyRing(file_directory=tmp_path / "keys", passphrase_source=f"file:{passphrase}")
    stores = [Store.open(store_url) for _ in range(2)]
    await stores[0].migrate()
    yield (
        Machine(stores[0], keyring, clock, upstream),
        Machine(stores[1], keyring, clock, upstream),
    )
    await keyring.close()
    for store in stores:
        await store.close()


@pytest.fixture
def machine(machines: tuple[Machine, Machine]) -> Machine:
    return machines[0]


def keys_in(tmp_path: Path) -> int:
    return len(list((tmp_path / "keys").iterdir()))


async def test_with_an_upstream_a_life_goes_by_itself(machine: Machine, tmp_path: Path):
    assert await machine.run_after(HOUR) == ["active"]
    assert await machine.run_after(69 * DAY) == ["active"]
    assert await machine.run_after(2 * DAY) == ["active", "next"]
    assert await machine.run_after(20 * DAY) == ["active", "next"]
    assert await machine.run_after(2 * DAY) == ["retired", "active"]
    assert await machine.run_after(DAY - HOUR) == ["retired", "active"]
    assert await machine.run_after(2 * HOUR) == ["gone", "active"]
    assert keys_in(tmp_path) == 2
    names = list(await machine.states())
    assert names[0].startswith("issuer-2")
    assert len(set(names)) == 2


async def test_the_root_leaves_the_bundle_with_the_last_issuer_below_it(
    machine: Machine, upstream: Root
):
    book = IssuerBook(machine.store, machine.succession._keyring, TRUST_DOMAIN)
    feed = TrustBundleFeed(
        book, FederatedBundles(machine.store, ()), TRUST_DOMAIN, refresh_hint=HOUR, limit=1
    )

    async def roots() -> int:
        await book.refresh()
        return len(feed.current().roots)

    await machine.run_after(HOUR)
    upstream.root = make_root()
    await machine.run_after(71 * DAY)
    assert await roots() == 2
    await machine.run_after(25 * DAY)
    assert await machine.run_after(HOUR) == ["retired", "active"]
    assert await roots() == 2
    assert await machine.run_after(2 * DAY) == ["gone", "active"]
    assert await roots() == 1


async def test_an_issuer_stays_while_a_recorded_certificate_of_it_lives(machine: Machine):
    await machine.run_after(HOUR)
    (name,) = await machine.states()
    last = machine.clock.now + 96 * DAY
    await machine.store.record(
        record_row(issuer=name, created_at=machine.clock.now, not_after=last)
    )
    await machine.run_after(71 * DAY)
    assert await machine.run_after(23 * DAY) == ["retired", "active"]
    assert await machine.run_after(last - machine.clock.now - HOUR) == ["retired", "active"]
    assert await machine.run_after(2 * HOUR) == ["gone", "active"]


async def test_an_issuer_stays_for_certificates_without_a_record_though_max_ttl_was_shortened(
    machines: tuple[Machine, Machine],
):
    machine, _ = machines
    await machine.run_after(HOUR)
    await machine.succession.note_longest_leaf()
    await machine.run_after(71 * DAY)
    restarted = Machine(machine.store, machine.succession._keyring, machine.clock, None)
    restarted.rotator._rules = replace(RULES, longest_leaf=HOUR)
    restarted.succession._rules = restarted.rotator._rules
    await restarted.succession.note_longest_leaf()  # which makes it no shorter
    assert await machine.run_after(23 * DAY) == ["retired", "active"]
    await restarted.succession.note_longest_leaf()
    assert await restarted.run_after(23 * HOUR) == ["retired", "active"]
    first, second = sorted((await machine.store.load_issuers())[1], key=lambda r: r.created_at)
    with pytest.raises(PreconditionFailed, match="may live until"):
        await restarted.succession.remove(first.name)
    assert (first.longest_leaf, second.longest_leaf) == (DAY, HOUR)
    assert await restarted.run_after(2 * HOUR) == ["gone", "active"]


async def test_an_upstream_that_fails_for_ever_makes_one_key_in_all(
    machine: Machine, upstream: Root, tmp_path: Path
):
    upstream.fault = Unavailable("The upstream's command ended with status 1: no.")
    with capture_logs() as logs:
        for _ in range(200):
            assert await machine.run_after(timedelta(seconds=10)) == ["pending"]
    assert keys_in(tmp_path) == 1
    assert len({public_key_info(csr.public_key()) for csr in upstream.asked}) == 1
    # 2,000 s with rests of 1, 2, 4 … 600 s in between, asked every 10 s.
    assert 8 <= len(upstream.asked) <= 12
    told = [line for line in logs if line["event"].startswith("a step of the rotation failed")]
    assert len(told) == len(upstream.asked)
    found = await machine.succession.rotation()
    assert found.last_failure == upstream.fault.message
    assert found.is_urgent
    upstream.fault = None
    assert await machine.run_after(timedelta(seconds=600)) == ["active"]
    assert (await machine.succession.rotation()).last_failure is None


async def test_what_an_upstream_brings_is_checked_like_anything_else(
    machine: Machine, upstream: Root
):
    await machine.run_after(HOUR)
    stranger = make_root()

    async def sign(csr: str) -> bytes:
        del csr
        return pem(stranger.make_intermediate().certificate, stranger.certificate)

    upstream.sign = sign  # type: ignore[method-assign]
    assert await machine.run_after(71 * DAY) == ["active", "pending"]
    found = await machine.succession.rotation()
    assert found.last_failure
    assert "No certificate has the key" in found.last_failure


async def test_a_successor_that_ends_no_later_is_made_once_and_never_activated(
    machine: Machine, upstream: Root, tmp_path: Path
):
    await machine.run_after(HOUR)
    upstream.lifetime = 10 * DAY
    with capture_logs() as logs:
        await machine.run_after(71 * DAY)
        for _ in range(30):
            assert await machine.run_after(HOUR) == ["active", "next"]
    assert keys_in(tmp_path) == 2
    (told,) = [line for line in logs if line.get("step") == "wait"]
    assert told["log_level"] == "warning"
    assert "no later than the active" in told["description"]


async def test_a_successor_that_expires_unused_gets_another_certificate_for_its_key(
    machine: Machine, upstream: Root, tmp_path: Path
):
    await machine.run_after(HOUR)
    upstream.lifetime = HOUR
    await machine.run_after(71 * DAY)
    for _ in range(5):  # an upstream that signs short ones
        assert await machine.run_after(2 * HOUR) == ["active", "next"]
    assert len(upstream.asked) == 7
    assert keys_in(tmp_path) == 2
    upstream.lifetime = 100 * DAY
    assert await machine.run_after(2 * HOUR) == ["active", "next"]
    assert await machine.run_after(23 * DAY) == ["retired", "active"]
    assert keys_in(tmp_path) == 2


async def test_without_an_upstream_it_says_what_it_waits_for_and_activates(
    machines: tuple[Machine, Machine], upstream: Root
):
    with_upstream, _ = machines
    await with_upstream.run_after(HOUR)
    machine = Machine(
        with_upstream.store, with_upstream.succession._keyring, with_upstream.clock, None
    )
    with capture_logs() as logs:
        for _ in range(3):
            assert await machine.run_after(24 * DAY) == ["active"]
            await machine.run_after(timedelta(seconds=1))
    told = [
        (line["log_level"], line["step"])
        for line in logs
        if line["event"] == "the rotation of the issuer"
    ]
    assert told == [("info", "none"), ("warning", "prepare")]
    _, csr = await machine.succession.prepare()
    assert (await machine.succession.rotation()).step == "import"
    await machine.succession.import_([await upstream.sign(csr)])
    assert await machine.run_after(23 * DAY) == ["retired", "active"]


async def test_two_replicas_that_both_believe_to_lead_make_one_issuer(
    machines: tuple[Machine, Machine], upstream: Root, tmp_path: Path
):
    async def lead(machine: Machine) -> None:
        for _ in range(3):
            with contextlib.suppress(StoreUnavailable):  # the other was first
                await machine.rotator.run()

    await asyncio.gather(*map(lead, machines))
    assert list((await machines[0].states()).values()) == ["active"]
    machines[0].clock.pass_(71 * DAY)
    await asyncio.gather(*map(lead, machines))
    assert list((await machines[0].states()).values()) == ["active", "next"]
    machines[0].clock.pass_(23 * DAY)
    await asyncio.gather(*map(lead, machines))
    assert list((await machines[0].states()).values()) == ["retired", "active"]
    assert keys_in(tmp_path) == 2
    _, rows = await machines[0].store.load_issuers()
    assert not any(row.last_failure for row in rows)


async def test_an_issuer_that_waits_with_another_kind_of_key_gets_its_certificate(
    machine: Machine, upstream: Root, tmp_path: Path
):
    # As made by hand, or before 'rotation.algorithm' was changed.
    row, _ = await machine.succession.prepare("by-hand", algorithm=KeyAlgorithmName.EC_P384)
    assert await machine.run_after(HOUR) == ["active"]
    assert public_key_info(upstream.asked[0].public_key()) == row.public_key
    assert keys_in(tmp_path) == 1


def meanwhile(store: Store, act: Callable[[], Awaitable[object]]) -> None:
    """Has somebody act between the next look at the issuers and what follows from it."""
    load = store.load_issuers

    async def load_once():
        seen = await load()
        store.load_issuers = load  # type: ignore[method-assign]
        await act()
        return seen

    store.load_issuers = load_once  # type: ignore[method-assign]


async def test_an_expired_issuer_that_is_renewed_meanwhile_stays(
    machines: tuple[Machine, Machine], upstream: Root
):
    operator, other = machines
    machine = Machine(other.store, other.succession._keyring, other.clock, None)
    await operator.run_after(HOUR)
    row, csr = await operator.succession.prepare("new")
    upstream.lifetime = 10 * DAY
    await operator.succession.import_([await upstream.sign(csr)])
    machine.clock.pass_(11 * DAY)
    upstream.lifetime = 200 * DAY
    renewed = await upstream.sign(csr)
    meanwhile(machine.store, lambda: operator.succession.import_([renewed], name=row.name))
    with pytest.raises(StoreUnavailable, match="changed by somebody else"):
        await machine.rotator.run()
    assert (await machine.states())["new"] == "next"


async def test_an_issuer_that_an_operator_activates_meanwhile_stays_active(
    machines: tuple[Machine, Machine], upstream: Root
):
    operator, machine = machines
    await operator.run_after(HOUR)
    for name, lifetime in (("long", 300 * DAY), ("short", 200 * DAY)):
        upstream.lifetime = lifetime
        _, csr = await operator.succession.prepare(name)
        await operator.succession.import_([await upstream.sign(csr)])
    machine.clock.pass_(95 * DAY)
    meanwhile(machine.store, lambda: operator.succession.activate("short"))
    with pytest.raises(StoreUnavailable, match="changed by somebody else"):
        await machine.rotator.run()
    states = await machine.states()
    assert (states["long"], states["short"]) == ("next", "active")


@pytest.mark.parametrize("jump", [500 * DAY, -500 * DAY])
async def test_a_clock_that_jumps_is_not_believed_for_a_while(machine: Machine, jump: timedelta):
    for time in (HOUR, 71 * DAY, 23 * DAY):
        states = await machine.run_after(time)
    assert states == ["retired", "active"]
    revision = await machine.store.issuers_revision()
    machine.clock.now += jump
    with capture_logs() as logs:
        for _ in range(9):
            await machine.run_after(timedelta(minutes=1))
    assert [line["event"] for line in logs] == [
        "the clock jumped: the rotation waits to see where it stays"
    ]
    machine.clock.now -= jump
    for _ in range(15):
        await machine.run_after(timedelta(minutes=1))
    assert await machine.store.issuers_revision() == revision
    assert await machine.run_after(2 * DAY) == ["gone", "active"]


async def test_a_clock_that_is_not_the_databases_is_not_believed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    async def later(_: Store) -> datetime:
        return machine.clock.now + timedelta(minutes=2)

    with monkeypatch.context() as patch, capture_logs() as logs:
        patch.setattr(Store, "clock", later)
        for _ in range(20):
            assert await machine.run_after(timedelta(minutes=1)) == []
    assert [line["event"] for line in logs] == [
        "the rotation waits: this clock and the database's differ"
    ]
    assert await machine.run_after(timedelta(minutes=9)) == []
    assert await machine.run_after(timedelta(minutes=1)) == ["active"]


async def test_operators_on_a_machine_with_another_clock_are_refused(
    machine: Machine, upstream: Root, monkeypatch: pytest.MonkeyPatch
):
    await machine.run_after(HOUR)
    row, csr = await machine.succession.prepare("new")
    upstream.lifetime = 200 * DAY
    material = [await upstream.sign(csr)]

    async def other(_: Store) -> datetime:
        return machine.clock.now - timedelta(days=2)

    refused = pytest.raises(PreconditionFailed, match="Set the wrong one")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "clock", other)
        with refused:
            await machine.succession.import_(material)
    await machine.succession.import_(material)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "clock", other)
        with refused:
            await machine.succession.activate(row.name, at_once=True)
        with refused:
            await machine.succession.remove(row.name, at_once=True)
    assert (await machine.states())["new"] == "next"


async def test_beside_sqlite_nothing_ends_in_the_first_minutes_of_a_service(
    machines: tuple[Machine, Machine], monkeypatch: pytest.MonkeyPatch
):
    machine, restarted = machines
    for time in (HOUR, 71 * DAY, 23 * DAY):
        await machine.run_after(time)

    async def none(_: Store) -> None:
        return None

    monkeypatch.setattr(Store, "clock", none)
    assert await restarted.run_after(2 * DAY) == ["retired", "active"]
    assert await restarted.run_after(timedelta(minutes=9)) == ["retired", "active"]
    assert await restarted.run_after(timedelta(minutes=1)) == ["gone", "active"]


async def test_a_key_that_does_not_sign_does_not_take_over(machine: Machine, tmp_path: Path):
    await machine.run_after(HOUR)
    before = set((tmp_path / "keys").iterdir())
    await machine.run_after(71 * DAY)
    (new,) = set((tmp_path / "keys").iterdir()) - before
    new.rename(tmp_path / "away")
    assert await machine.run_after(23 * DAY) == ["active", "next"]
    found = await machine.succession.rotation()
    assert found.last_failure
    assert found.is_urgent
    (tmp_path / "away").rename(new)
    assert await machine.run_after(HOUR) == ["retired", "active"]


async def test_names_of_one_day_do_not_collide(machine: Machine, upstream: Root):
    names = []
    for _ in range(3):
        row, csr = await machine.succession.prepare()
        names.append(row.name)
        await machine.succession.import_([await upstream.sign(csr)])
    day = f"{machine.clock.now:%Y%m%d}"
    assert names == [f"issuer-{day}", f"issuer-{day}-2", f"issuer-{day}-3"]


async def test_an_issuer_that_was_never_used_can_be_removed(machine: Machine):
    await machine.run_after(HOUR)
    row, _ = await machine.succession.prepare()
    assert (await machine.succession.remove(row.name)).state is IssuerState.GONE
    assert (await machine.succession.remove(row.name)).state is IssuerState.GONE
    again, _ = await machine.succession.prepare()
    assert again.name != row.name
