"""The rotation of keys for JWT-SVIDs: real stores, real keys, two replicas, the test's clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from meshmint_server.authority import (
    IssuerBook,
    JwtKeyBook,
    JwtKeyRotator,
    JwtKeyRules,
    JwtKeySuccession,
    TrustBundleFeed,
)
from meshmint_server.authority.federation import FederatedBundles
from meshmint_server.errors import (
    KeyUnavailable,
    NotFound,
    PreconditionFailed,
    StoreUnavailable,
    Unavailable,
)
from meshmint_server.keys import KeyRing, default_algorithm
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import JwtKeyRow, JwtKeyState, Store
from structlog.testing import capture_logs

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SOON = timedelta(seconds=2)
RULES = JwtKeyRules(is_enabled=True, period=30 * DAY, publish_for=HOUR, longest_token=DAY)


class Clock:
    """Both clocks of a machine."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.seconds = 1000.0

    def pass_(self, time: timedelta) -> None:
        self.now += time
        self.seconds += time.total_seconds()


class Replica:
    """A store, keys, what it does by itself, and what its workers see."""

    def __init__(
        self, store: Store, keyring: KeyRing, clock: Clock, rules: JwtKeyRules = RULES
    ) -> None:
        self.store = store
        self.clock = clock
        self.keyring = keyring
        self.succession = JwtKeySuccession(store, keyring, rules, clock=lambda: clock.now)
        self.rotator = JwtKeyRotator(
            store, self.succession, clock=lambda: clock.now, monotonic=lambda: clock.seconds
        )
        self.book = JwtKeyBook(store, keyring, monotonic=lambda: clock.seconds)

    async def rows(self) -> tuple[JwtKeyRow, ...]:
        return (await self.store.load_jwt_keys())[1]

    async def run_after(self, time: timedelta) -> list[str]:
        """The states of the keys, in the order of their making."""
        self.clock.pass_(time)
        await self.rotator.run()
        await self.book.refresh()
        return [row.state.value for row in await self.rows()]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    async def same(_: Store) -> datetime:
        return clock.now

    # The database's clock cannot be set; it agrees with the test's.
    monkeypatch.setattr(Store, "clock", same)
    return clock


@pytest.fixture
async def replicas(
    store_url: str, tmp_path: Path, clock: Clock
) -> AsyncIterator[tuple[Replica, Replica]]:
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("a passphrase of this test\n")
    passphrase.chmod(0o600)
    (tmp_path / "keys").mkdir(0o700)
    keyring = KeyRing(file_directory=tmp_path / "keys", passphrase_source=f"file:{passphrase}")
    stores = [Store.open(store_url) for _ in range(2)]
    await stores[0].migrate()
    yield Replica(stores[0], keyring, clock), Replica(stores[1], keyring, clock)
    await keyring.close()
    for store in stores:
        await store.close()


@pytest.fixture
def replica(replicas: tuple[Replica, Replica]) -> Replica:
    return replicas[0]


def keys_in(tmp_path: Path) -> int:
    return len(list((tmp_path / "keys").iterdir()))


async def test_a_life_goes_by_itself(replica: Replica, tmp_path: Path):
    assert await replica.run_after(HOUR) == ["next"]
    assert await replica.run_after(SOON) == ["active"]
    assert await replica.run_after(15 * DAY - SOON) == ["active"]
    assert await replica.run_after(SOON) == ["active", "next"]
    assert await replica.run_after(15 * DAY - 2 * SOON) == ["active", "next"]
    assert await replica.run_after(2 * SOON) == ["retired", "active"]
    assert await replica.run_after(DAY) == ["retired", "active"]
    assert await replica.run_after(timedelta(minutes=10)) == ["gone", "active"]
    assert keys_in(tmp_path) == 2
    first, second = await replica.rows()
    assert first.key_id != second.key_id
    assert first.public_key != second.public_key


async def test_what_signs_is_always_in_what_was_published_long_enough_before(replica: Replica):
    published: dict[str, datetime] = {}
    signed_last: dict[str, datetime] = {}
    await replica.run_after(HOUR)
    await replica.run_after(SOON)
    for _ in range(350):  # several periods
        await replica.run_after(7 * HOUR)
        now = replica.clock.now
        present = {key.key_id for key in replica.book.published}
        for key_id in present:
            published.setdefault(key_id, now)
        signing = replica.book.signing()
        assert signing.key_id in present
        if signing.key_id not in signed_last and signed_last:
            assert now - published[signing.key_id] >= RULES.publish_for
        signed_last[signing.key_id] = now
        for key_id, last in signed_last.items():
            if now <= last + RULES.longest_token:
                assert key_id in present, "a token of this key lives"
    assert len(signed_last) == 4
    assert len(present) <= 2


async def test_two_replicas_that_both_believe_to_lead_make_one_key_and_agree(
    replicas: tuple[Replica, Replica], tmp_path: Path
):
    async def lead(replica: Replica) -> None:
        for _ in range(3):
            with contextlib.suppress(StoreUnavailable):  # the other was first
                await replica.rotator.run()

    for pause, expected in ((HOUR, ["next"]), (SOON, ["active"]), (15 * DAY, ["active", "next"])):
        replicas[0].clock.pass_(pause)
        await asyncio.gather(*map(lead, replicas))
        assert [row.state.value for row in await replicas[1].rows()] == expected
    replicas[0].clock.pass_(15 * DAY)
    await asyncio.gather(*map(lead, replicas))
    assert [row.state.value for row in await replicas[1].rows()] == ["retired", "active"]
    assert keys_in(tmp_path) == 2
    for replica in replicas:
        await replica.book.refresh()
    one, other = (replica.book for replica in replicas)
    assert one.published == other.published
    assert one.signing().key_id == other.signing().key_id
    assert one.revision == other.revision


async def test_a_key_whose_making_was_interrupted_is_found_and_no_second_is_made(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    put = Store.put_jwt_key
    fails = iter([False, True])

    async def interrupted(store: Store, row: JwtKeyRow, *, at_revision: int) -> bool:
        if next(fails, False):
            raise StoreUnavailable("the leader dies, and the key has been made")
        return await put(store, row, at_revision=at_revision)

    monkeypatch.setattr(Store, "put_jwt_key", interrupted)
    with pytest.raises(StoreUnavailable):
        await replica.rotator.run()
    assert [row.state.value for row in await replica.rows()] == ["pending"]
    assert replica.book.published == ()
    assert await replica.run_after(SOON) == ["next"]
    assert keys_in(tmp_path) == 1


async def test_a_token_that_is_away_is_asked_again_with_rests_and_makes_one_key(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find = KeyRing.find_or_generate
    asked = 0

    async def away(keyring: KeyRing, place: str, algorithm: str) -> object:
        nonlocal asked
        asked += 1
        raise KeyUnavailable("The token is not there.")

    monkeypatch.setattr(KeyRing, "find_or_generate", away)
    with capture_logs() as logs:
        for _ in range(60):
            assert await replica.run_after(SOON) == ["pending"]
    assert 10 <= asked <= 30  # rests of 1, 2, 4, 8 and then 10 s, in 120
    assert {line["log_level"] for line in logs if "failed" in line["event"]} == {"error"}
    with pytest.raises(KeyUnavailable) as caught:
        replica.book.signing()
    assert caught.value.reason == "JWT_KEY_NOT_READY"
    assert caught.value.retry_after
    monkeypatch.setattr(KeyRing, "find_or_generate", find)
    assert await replica.run_after(timedelta(seconds=10)) == ["next"]
    assert keys_in(tmp_path) == 1


async def test_turned_off_the_keys_retire_and_go_and_turned_on_again_there_is_another(
    replica: Replica, tmp_path: Path
):
    await replica.run_after(HOUR)
    await replica.run_after(SOON)
    off = Replica(replica.store, replica.keyring, replica.clock, JwtKeyRules(longest_token=DAY))
    assert await off.run_after(HOUR) == ["retired"]
    assert len(off.book.published) == 1
    with pytest.raises(KeyUnavailable):
        off.book.signing()
    assert await off.run_after(DAY + HOUR) == ["gone"]
    assert off.book.published == ()
    assert await replica.run_after(HOUR) == ["gone", "next"]
    assert await replica.run_after(SOON) == ["gone", "active"]


async def test_a_clock_that_jumps_activates_nothing_and_removes_nothing(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
):
    await replica.run_after(HOUR)
    await replica.run_after(SOON)
    await replica.run_after(15 * DAY)
    replica.clock.now += 40 * DAY  # and the monotonic clock stays
    assert await replica.run_after(SOON) == ["active", "next"]

    async def other(_: Store) -> datetime:
        return replica.clock.now - 40 * DAY

    monkeypatch.setattr(Store, "clock", other)
    assert await replica.run_after(HOUR) == ["active", "next"]
    revision, rows, _ = await replica.succession.look()
    with pytest.raises(PreconditionFailed, match="clock"):
        await replica.succession.activate(rows[1].key_id, at_revision=revision)


async def test_operators_may_hurry_and_are_told_what_it_breaks(replica: Replica):
    await replica.run_after(HOUR)
    await replica.run_after(SOON)
    await replica.succession.prepare()
    with pytest.raises(StoreUnavailable):
        await replica.succession.prepare()  # there is a next one already
    revision, (old, new), _ = await replica.succession.look()
    with pytest.raises(PreconditionFailed, match="has to be published until"):
        await replica.succession.activate(new.key_id, at_revision=revision)
    with pytest.raises(PreconditionFailed, match="Only the next one"):
        await replica.succession.activate(old.key_id, at_revision=revision)
    with pytest.raises(PreconditionFailed, match="is active"):
        await replica.succession.remove(old.key_id, at_revision=revision, at_once=True)
    with pytest.raises(NotFound):
        await replica.succession.remove("jwt-none", at_revision=revision)
    with pytest.raises(StoreUnavailable):
        await replica.succession.activate(new.key_id, at_revision=revision - 1, at_once=True)
    await replica.succession.activate(new.key_id, at_revision=revision, at_once=True)
    revision, _, _ = await replica.succession.look()
    with pytest.raises(PreconditionFailed, match="may live until"):
        await replica.succession.remove(old.key_id, at_revision=revision)
    await replica.succession.remove(old.key_id, at_revision=revision, at_once=True)
    await replica.book.refresh()
    assert [key.key_id for key in replica.book.published] == [new.key_id]


async def test_a_worker_that_cannot_ask_for_minutes_signs_no_more(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
):
    await replica.run_after(HOUR)
    await replica.run_after(SOON)

    async def away(_: Store) -> int:
        raise StoreUnavailable("The database does not answer.")

    with monkeypatch.context() as broken:
        broken.setattr(Store, "issuers_revision", away)
        replica.clock.pass_(timedelta(minutes=5))
        with pytest.raises(StoreUnavailable):
            await replica.book.refresh()
        assert replica.book.signing()
        replica.clock.pass_(SOON)
        with pytest.raises(StoreUnavailable) as caught:
            replica.book.signing()
        assert caught.value.reason == "JWT_KEYS_NOT_CONFIRMED"
    await replica.book.refresh()
    signing = replica.book.signing()
    algorithm = default_algorithm(signing.public_key)
    signature = await signing.key.sign(b"data", algorithm)
    assert algorithm.is_valid(signing.public_key, signature, b"data")


async def test_a_key_that_cannot_be_opened_is_published_and_looked_for_again(
    replica: Replica, tmp_path: Path
):
    await replica.run_after(HOUR)
    await replica.run_after(SOON)
    (path,) = (tmp_path / "keys").iterdir()
    hidden = path.rename(tmp_path / "hidden")
    book = JwtKeyBook(replica.store, replica.keyring)
    await book.refresh()
    assert len(book.published) == 1
    signing = book.signing()
    with pytest.raises(KeyUnavailable):
        await signing.key.sign(b"data", default_algorithm(signing.public_key))
    hidden.rename(path)
    await book.refresh()
    assert await book.signing().key.sign(b"data", default_algorithm(signing.public_key))


async def test_a_next_key_that_is_lost_can_be_removed_and_another_is_made(
    replica: Replica, tmp_path: Path
):
    await replica.run_after(HOUR)
    await replica.run_after(SOON)
    assert await replica.run_after(15 * DAY) == ["active", "next"]
    for path in (tmp_path / "keys").iterdir():
        path.unlink()
    # What a process holds open it keeps; an operator's command begins anew.
    fresh = KeyRing(
        file_directory=tmp_path / "keys", passphrase_source=f"file:{tmp_path / 'passphrase'}"
    )
    operator = JwtKeySuccession(replica.store, fresh, RULES, clock=lambda: replica.clock.now)
    revision, (_, lost), _ = await operator.look()
    with pytest.raises(KeyUnavailable):
        await operator.activate(lost.key_id, at_revision=revision, at_once=True)

    await operator.remove(lost.key_id, at_revision=revision)
    made = await operator.prepare()
    revision, _, _ = await operator.look()
    await operator.activate(made.key_id, at_revision=revision, at_once=True)
    await fresh.close()
    states = {row.key_id: row.state.value for row in await replica.rows()}
    assert (states[lost.key_id], states[made.key_id]) == ("gone", "active")


async def test_a_key_that_was_to_be_made_where_none_are_made_any_more_is_made_elsewhere(
    replica: Replica, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as before:
        before.setattr(KeyRing, "place_of", lambda _, label: f"pkcs11:token=old;object={label}")
        with capture_logs():
            assert await replica.run_after(HOUR) == ["pending"]
    assert await replica.run_after(timedelta(seconds=10)) == ["next"]
    assert await replica.run_after(SOON) == ["active"]
    assert keys_in(tmp_path) == 1


async def test_a_token_that_hangs_keeps_no_verifier_from_knowing_a_key(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
):
    await replica.run_after(HOUR)
    hangs = asyncio.Event()

    async def hang(*_: object) -> object:
        hangs.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(KeyRing, "open", hang)
    changes: list[None] = []
    book = JwtKeyBook(replica.store, replica.keyring, on_change=lambda: changes.append(None))
    refreshing = asyncio.create_task(book.refresh())
    await hangs.wait()
    assert len(book.published) == 1
    assert changes
    refreshing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await refreshing


async def test_a_row_that_cannot_be_read_is_left_out_and_the_others_are_published(
    replica: Replica,
):
    await replica.run_after(HOUR)
    await replica.run_after(SOON)
    revision = await replica.store.issuers_revision()
    broken = replace((await replica.rows())[0], key_id="broken", state=JwtKeyState.NEXT)
    assert await replica.store.put_jwt_key(
        replace(broken, public_key=b"no key"), at_revision=revision
    )
    with capture_logs() as logs:
        await replica.book.refresh()
        await replica.book.refresh()
    assert [one["key"] for one in logs] == ["broken"]
    assert replica.book.signing().key_id in {key.key_id for key in replica.book.published}
    assert len(replica.book.published) == 1


async def test_one_number_never_stands_for_two_sets_of_roots_and_keys(replica: Replica):
    issuers = IssuerBook(replica.store, replica.keyring, TrustDomain("mesh.example"))
    book = JwtKeyBook(replica.store, replica.keyring, on_change=issuers.wake)
    feed = TrustBundleFeed(
        issuers,
        FederatedBundles(replica.store, ()),
        TrustDomain("mesh.example"),
        refresh_hint=HOUR,
        limit=1,
        jwt_keys=book,
    )
    await replica.run_after(HOUR)
    await issuers.refresh()
    changed = issuers.changed
    with pytest.raises(Unavailable, match="being read"):
        feed.current()
    await book.refresh()
    assert changed.is_set()  # whoever waits for the roots is told of keys, too
