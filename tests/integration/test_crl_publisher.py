"""What is published when: on schedule, after revocations, whatever clocks and keys do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from meshmint_server.authority import CrlBook, CrlPublisher, CrlTimes, Issuer, crl_listing
from meshmint_server.errors import KeyUnavailable, StoreUnavailable
from meshmint_server.keys import KeyAttributes, SignatureAlgorithm
from meshmint_server.store import CrlKind, CrlRow, IssuerState, Store
from support.crls import NOON, Issuers, findings, make_issuer, revoke, serials_of
from support.rows import issuer_row
from support.software_key import SoftwareKey

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
TIMES = CrlTimes(lifetime=24 * HOUR, interval=8 * HOUR, delay=60 * SECOND)
WITH_DELTAS = CrlTimes(
    lifetime=24 * HOUR, interval=8 * HOUR, delay=60 * SECOND, delta_lifetime=2 * HOUR
)
URL = "http://pki.example.org"


class HeldKey:
    """Signs when it may."""

    def __init__(self, key: SoftwareKey) -> None:
        self._key = key
        self.uri = key.uri
        self.public_key = key.public_key
        self.is_asked, self.may_sign = asyncio.Event(), asyncio.Event()

    async def sign(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        self.is_asked.set()
        await self.may_sign.wait()
        return await self._key.sign(data, algorithm)

    async def attributes(self) -> KeyAttributes:
        return await self._key.attributes()


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = Store.open(store_url)
    await store.migrate()
    yield store
    await store.close()


class Scene:
    """A publisher, and a clock that the test sets."""

    def __init__(self, store: Store, *issuers: Issuer, times: CrlTimes = TIMES) -> None:
        self.store = store
        self.issuers = Issuers(*issuers)
        self.now = NOON
        self._times = times
        self.change_leader()

    def change_leader(self) -> None:
        """Goes on with a publisher that has made no CRL yet."""
        self.publisher = CrlPublisher(
            self.issuers,  # type: ignore[arg-type]  # all that it looks at
            self.store,
            self._times,
            url=URL,
            clock=lambda: self.now,
        )

    async def run(self, after: timedelta = timedelta(0)) -> None:
        """Runs the duty, later."""
        self.now += after
        await self.publisher.run()

    async def crl(
        self, kind: CrlKind = CrlKind.FULL, shard: int = 0, issuer: str = "mesh-1"
    ) -> CrlRow:
        """What is published; right in itself."""
        row = await self.store.get_crl(issuer, shard, kind)
        assert row is not None
        (made_by,) = [one for one in self.issuers.issuers if one.name == issuer]
        crl = x509.load_der_x509_crl(row.document)
        assert crl.is_signature_valid(made_by.key.public_key)
        assert (crl.last_update_utc, crl.next_update_utc) == (row.this_update, row.next_update)
        assert number_of(row) == row.number
        assert len(crl) == row.entries
        return row


def number_of(row: CrlRow) -> int:
    crl = x509.load_der_x509_crl(row.document)
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def key_of(issuer: Issuer) -> SoftwareKey:
    assert isinstance(issuer.key, SoftwareKey)
    return issuer.key


async def test_every_issuer_has_a_crl_at_once_and_a_new_one_on_schedule(store: Store) -> None:
    scene = Scene(store, make_issuer("mesh-1"), make_issuer("mesh-2"))
    await scene.run()
    first = await scene.crl()
    assert (await scene.crl(issuer="mesh-2")).entries == first.entries == 0
    assert first.this_update == NOON
    assert first.next_update == NOON + TIMES.lifetime

    await scene.run(TIMES.interval - SECOND)
    assert await scene.crl() == first
    await scene.run(SECOND)
    second = await scene.crl()
    assert second.this_update == scene.now
    assert second.number > first.number


async def test_revocation_shows_up_at_once_and_many_are_gathered(store: Store) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer, make_issuer("mesh-2"))
    await scene.run()
    other = await scene.crl(issuer="mesh-2")

    first = await revoke(store, issuer)
    await scene.run(HOUR)
    assert serials_of((await scene.crl()).document) == {first}

    second = await revoke(store, issuer)
    await scene.run(TIMES.rest - SECOND)
    assert serials_of((await scene.crl()).document) == {first}
    third = await revoke(store, issuer)
    await scene.run(SECOND)
    assert serials_of((await scene.crl()).document) == {first, second, third}
    assert await scene.crl(issuer="mesh-2") == other, "nobody else's CRL is made anew"


async def test_delta_has_what_was_revoked_since_its_base_and_begins_again_with_the_next(
    store: Store,
) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer, times=WITH_DELTAS)
    before = await revoke(store, issuer)
    await scene.run()
    base, empty = await scene.crl(), await scene.crl(CrlKind.DELTA)
    assert serials_of(base.document) == {before}
    assert (empty.entries, empty.base_number) == (0, base.number)

    since = await revoke(store, issuer)
    await scene.run(WITH_DELTAS.rest)
    delta = await scene.crl(CrlKind.DELTA)
    assert serials_of(delta.document) == {since}
    assert delta.base_number == base.number
    assert delta.number > empty.number > base.number
    assert await scene.crl() == base, "one more revocation makes no full CRL"
    assert findings(delta.document) == findings(base.document) == []

    await scene.run(WITH_DELTAS.interval)
    full, fresh = await scene.crl(), await scene.crl(CrlKind.DELTA)
    assert serials_of(full.document) == {before, since}
    assert (fresh.entries, fresh.base_number) == (0, full.number)
    assert fresh.number > full.number > delta.number


async def test_delta_is_renewed_before_it_expires(store: Store) -> None:
    scene = Scene(store, make_issuer(), times=WITH_DELTAS)
    await scene.run()
    first = await scene.crl(CrlKind.DELTA)
    await scene.run(HOUR)
    second = await scene.crl(CrlKind.DELTA)
    assert second.number > first.number
    assert second.this_update < first.next_update


async def test_deltas_that_are_not_wanted_any_more_go_and_no_full_crl_names_them(
    store: Store,
) -> None:
    issuer = make_issuer()
    await Scene(store, issuer, times=WITH_DELTAS).run()
    scene = Scene(store, issuer)
    await scene.run()
    assert await store.get_crl(issuer.name, 0, CrlKind.DELTA) is None
    full = x509.load_der_x509_crl((await scene.crl()).document)
    assert not [one for one in full.extensions if isinstance(one.value, x509.FreshestCRL)]


async def test_each_revocation_is_in_the_part_of_its_certificate(store: Store) -> None:
    issuer = make_issuer(shards=3, url=URL)
    scene = Scene(store, issuer, times=WITH_DELTAS)
    await scene.run()
    for serial in (30, 31, 32, 33, 34):
        await revoke(store, issuer, serial=serial)
    await scene.run(WITH_DELTAS.interval)
    parts = [serials_of((await scene.crl(shard=shard)).document) for shard in range(3)]
    assert parts == [{30, 33}, {31, 34}, {32}]

    untouched = await scene.crl(CrlKind.DELTA, shard=0)
    await revoke(store, issuer, serial=61)
    await scene.run(WITH_DELTAS.rest)
    assert serials_of((await scene.crl(CrlKind.DELTA, shard=1)).document) == {61}
    assert await scene.crl(CrlKind.DELTA, shard=0) == untouched


async def test_expired_entry_leaves_once_it_was_on_a_crl_made_after_its_expiry(
    store: Store,
) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer)
    short = await revoke(store, issuer, not_after=NOON + HOUR)
    long = await revoke(store, issuer, not_after=NOON + 100 * HOUR)
    await scene.run()
    await scene.run(TIMES.interval)
    assert serials_of((await scene.crl()).document) == {short, long}
    await scene.run(TIMES.interval)
    assert serials_of((await scene.crl()).document) == {long}
    late = await revoke(store, issuer, not_after=NOON)
    await scene.run(TIMES.interval)
    assert serials_of((await scene.crl()).document) == {long, late}
    await scene.run(TIMES.interval)
    assert serials_of((await scene.crl()).document) == {long}


async def test_expired_entry_stays_in_the_delta_until_a_full_crl_had_it(store: Store) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer, times=WITH_DELTAS)
    await scene.run()
    short = await revoke(store, issuer, not_after=NOON + HOUR)
    await scene.run(HOUR)
    await scene.run(HOUR)
    assert serials_of((await scene.crl(CrlKind.DELTA)).document) == {short}
    await scene.run(WITH_DELTAS.interval)
    assert serials_of((await scene.crl()).document) == {short}
    assert serials_of((await scene.crl(CrlKind.DELTA)).document) == set()
    await scene.run(WITH_DELTAS.interval)
    assert serials_of((await scene.crl()).document) == set()


@pytest.mark.parametrize("step", [-365 * 24 * HOUR, -SECOND, 25 * HOUR, 365 * 24 * HOUR])
@pytest.mark.parametrize("times", [TIMES, WITH_DELTAS], ids=["full", "delta"])
async def test_clock_step_makes_new_crls_with_higher_numbers(
    store: Store, step: timedelta, times: CrlTimes
) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer, times=times)
    await scene.run()
    kinds = [CrlKind.FULL] if times is TIMES else list(CrlKind)
    highest = max([(await scene.crl(kind)).number for kind in kinds])
    await scene.run(step)
    for kind in kinds:
        crl = await scene.crl(kind)
        assert crl.number > highest
        assert crl.this_update == scene.now < crl.next_update


async def test_what_left_while_the_clock_was_ahead_comes_back_with_it(store: Store) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer)
    serial = await revoke(store, issuer, not_after=NOON + 100 * HOUR)
    await scene.run()
    await scene.run(365 * 24 * HOUR)
    await scene.run(TIMES.interval)
    assert serials_of((await scene.crl()).document) == set()
    await scene.run(-365 * 24 * HOUR - TIMES.interval + HOUR)
    assert serials_of((await scene.crl()).document) == {serial}


@pytest.mark.parametrize("fault", ["silent", "lying"])
async def test_key_that_does_not_sign_stops_its_issuer_alone(store: Store, fault: str) -> None:
    broken, sound = make_issuer("mesh-1"), make_issuer("mesh-2")
    scene = Scene(store, broken, sound)
    await scene.run()
    before = await scene.crl()
    if fault == "silent":
        key_of(broken).fault = KeyUnavailable("The token is away.")
    else:
        key_of(broken).is_lying = True

    await scene.run(TIMES.interval)
    assert await scene.crl() == before
    assert (await scene.crl(issuer="mesh-2")).this_update == scene.now

    key_of(broken).fault, key_of(broken).is_lying = None, False
    await scene.run()
    assert (await scene.crl()).this_update == scene.now


async def test_crls_of_an_issuer_that_is_gone_go_and_those_of_one_not_yet_seen_stay(
    store: Store,
) -> None:
    scene = Scene(store, make_issuer("mesh-1"), make_issuer("mesh-2"), make_issuer("mesh-3"))
    await store.put_issuer(issuer_row(name="mesh-2", state=IssuerState.GONE))
    await store.put_issuer(issuer_row(name="mesh-3", state=IssuerState.NEXT))
    await scene.run()
    scene.issuers.issuers = scene.issuers.issuers[:1]
    await scene.run()
    assert {row.issuer for row in await store.list_crls()} == {"mesh-1", "mesh-3"}


async def test_of_two_leaders_at_once_one_publishes_and_numbers_only_grow(store: Store) -> None:
    issuer = make_issuer()
    key_of(issuer).delay = 0.01
    scenes = [Scene(store, issuer) for _ in range(2)]
    numbers = []
    for _ in range(10):
        await asyncio.gather(*(scene.run(TIMES.interval) for scene in scenes))
        numbers.append((await scenes[0].crl()).number)
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("times", [TIMES, WITH_DELTAS])
async def test_slow_leader_whose_clock_is_ahead_takes_no_revocation_back(
    store: Store, times: CrlTimes
) -> None:
    issuer = make_issuer()
    held = HeldKey(key_of(issuer))
    slow = Scene(store, replace(issuer, key=held), times=times)
    fast = Scene(store, issuer, times=times)
    await fast.run()
    slow.now += 10 * SECOND  # a clock that is ahead: its numbers are higher
    late = asyncio.create_task(slow.run(times.interval))
    await held.is_asked.wait()

    revoked = await revoke(store, issuer)
    await fast.run(times.interval)
    held.may_sign.set()
    await late

    assert serials_of((await fast.crl()).document) == {revoked}
    newest = max(await store.list_crls(), key=lambda row: row.number)
    assert newest.through == await store.latest_revocation()


async def test_crl_with_a_number_that_was_given_out_is_not_taken(store: Store) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer, times=WITH_DELTAS)
    await scene.run()
    full, delta = await scene.crl(), await scene.crl(CrlKind.DELTA)
    for number in (full.number, delta.number, 1):
        for kind in CrlKind:
            late = replace(full, kind=kind, number=number, document=b"late")
            for after in (full.number, delta.number, 0):
                assert not await store.put_crl(late, after=after)
    assert (await scene.crl(), await scene.crl(CrlKind.DELTA)) == (full, delta)


async def test_number_grows_even_where_the_store_was_set_back(store: Store) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer)
    await scene.run()
    number = (await scene.crl()).number
    await store.delete_crls(issuer.name)
    await scene.run(SECOND)
    assert (await scene.crl()).number > number


async def test_worker_hands_out_the_newest_and_never_an_older_one(store: Store) -> None:
    issuer = make_issuer()
    scene = Scene(store, issuer)
    book = CrlBook(store)
    assert not book.is_loaded
    await scene.run()
    await book.refresh()
    first = book.get(issuer.name, 0, CrlKind.FULL)
    assert first is not None
    assert first.row == await scene.crl()
    await scene.run(TIMES.interval)
    await book.refresh()
    second = book.get(issuer.name, 0, CrlKind.FULL)
    assert second is not None
    assert second.row.number > first.row.number
    pem = x509.load_pem_x509_crl(second.pem)
    assert pem == x509.load_der_x509_crl(second.der)

    # A store that was restored from an old backup.
    await store.delete_crls(issuer.name)
    assert await store.put_crl(first.row, after=0)
    await book.refresh()
    assert book.get(issuer.name, 0, CrlKind.FULL) is second
    await store.delete_crls(issuer.name)
    await book.refresh()
    assert book.get(issuer.name, 0, CrlKind.FULL) is None


async def test_entries_are_read_in_parts_and_none_is_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crl_listing, "_ROWS", 10)
    issuer = make_issuer()
    scene = Scene(store, issuer)
    made = {await revoke(store, issuer) for _ in range(30)}
    await scene.run()
    assert serials_of((await scene.crl()).document) == made


@pytest.mark.parametrize("seed", range(3))
async def test_next_crl_lists_the_same_whether_the_last_one_was_made_here_or_not(
    store: Store, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(crl_listing, "_ROWS", 4)
    chance = random.Random(seed)  # noqa: S311  the same revocations every time
    issuer = make_issuer()
    scene = Scene(store, issuer)
    expiries: dict[int, datetime] = {}
    listed_before: set[int] = set()
    last = scene.now
    for _ in range(25):
        if chance.random() < 0.15:
            scene.change_leader()
        new = set()
        for _ in range(chance.randint(0, 9)):
            not_after = scene.now + chance.randint(-4, 60) * HOUR
            serial = await revoke(store, issuer, not_after=not_after)
            new.add(serial)
            expiries[serial] = not_after
        await scene.run(TIMES.interval)
        staying = {serial for serial in listed_before if expiries[serial] >= last}
        crl = await scene.crl()
        assert serials_of(crl.document) == staying | new
        assert crl.entries == len(staying | new)
        listed_before, last = staying | new, crl.this_update


async def test_what_stays_listed_is_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crl_listing, "_ROWS", 10)
    issuer = make_issuer()
    scene = Scene(store, issuer)
    made = {await revoke(store, issuer, not_after=NOON + 100 * HOUR) for _ in range(60)}
    await scene.run()
    looked: list[int] = []
    list_shard = store.list_shard

    async def counted(*shard: Any, **which: Any) -> Any:
        revoked, end = await list_shard(*shard, **which)
        looked.append(len(revoked))
        return revoked, end

    monkeypatch.setattr(store, "list_shard", counted)
    late = await revoke(store, issuer, not_after=NOON + 100 * HOUR)
    await scene.run(TIMES.interval)
    assert serials_of((await scene.crl()).document) == made | {late}
    assert looked == [1]


async def test_worker_goes_on_with_what_it_has_while_the_store_is_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer = make_issuer()
    await Scene(store, issuer).run()
    book = CrlBook(store)
    await book.refresh()
    known = book.get(issuer.name, 0, CrlKind.FULL)

    async def away() -> int:
        raise StoreUnavailable("The database does not answer.")

    monkeypatch.setattr(store, "crls_revision", away)
    with pytest.raises(StoreUnavailable):
        await book.refresh()
    assert known is not None
    assert book.get(issuer.name, 0, CrlKind.FULL) is known
