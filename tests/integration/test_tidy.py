"""Tidying in both databases: what goes, what stays, and that a wrong clock takes nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.issuance import Tidy
from meshmint_server.store import (
    CrlKind,
    CrlRow,
    IssuerState,
    RecordFilter,
    RecordRow,
    RevocationRow,
    Store,
)
from meshmint_server.store.expired import expired_revocations, oldest_records
from meshmint_server.store.schema import record_names
from sqlalchemy import func, select
from support.plans import plan_of
from support.rows import issuer_row, record_row
from support.service import Service, ServiceFactory

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
KEEP = 30 * DAY


@pytest.fixture
async def store(store_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    """The database's clock agrees with NOW, however long ago this module was imported."""
    store = Store.open(store_url)
    await store.migrate()

    async def clock() -> datetime:
        return NOW

    if not store.database.is_sqlite:
        monkeypatch.setattr(store, "clock", clock)
    yield store
    await store.close()


def tidy_at(store: Store, now: datetime) -> Tidy:
    return Tidy(store, keep=KEEP, interval=HOUR, clock=lambda: now)


async def make_pass(store: Store) -> None:
    """A pass that is due."""
    await store.note_duty("tidy", NOW - HOUR)
    await tidy_at(store, NOW).run()


def expiring(at: datetime, *, lifetime: timedelta = HOUR, **changes: object) -> RecordRow:
    return record_row(created_at=at - lifetime, not_after=at, **changes)


async def record(store: Store, *rows: RecordRow) -> None:
    await asyncio.gather(*map(store.record, rows))


async def left(store: Store, *rows: RecordRow) -> list[bool]:
    return [await store.get_record(row.serial_number) is not None for row in rows]


async def count_names(store: Store) -> int:
    statement = select(func.count()).select_from(record_names)

    return int(
        await store.database.run(lambda connection: connection.execute(statement).scalar_one())
    )


async def test_what_expired_long_ago_goes_with_its_names_and_the_rest_stays(store: Store) -> None:
    old = expiring(NOW - KEEP - HOUR)
    lately = expiring(NOW - KEEP + HOUR)
    living = expiring(NOW + DAY, lifetime=400 * DAY)
    await record(store, old, lately, living)
    assert await count_names(store) == 3
    await make_pass(store)
    assert await left(store, old, lately, living) == [False, True, True]
    assert await count_names(store) == 2
    assert await store.duty_done_at("tidy") == NOW


async def test_a_pass_goes_through_many_and_past_long_lived_ones(store: Store) -> None:
    rows = [
        expiring(NOW + DAY, lifetime=400 * DAY + timedelta(seconds=number))
        if number % 3 == 0 or number < 600
        else expiring(NOW - KEEP - HOUR, lifetime=timedelta(seconds=number))
        for number in range(1800)
    ]
    await record(store, *rows)
    await make_pass(store)
    kept: set[str] = set()
    token = ""
    while True:
        page = await store.list_records(RecordFilter(), 1000, token)
        kept |= {row.serial_number for row in page.items}
        token = page.next_page_token
        if not token:
            break
    assert kept == {row.serial_number for row in rows if row.not_after > NOW}


async def test_records_are_issued_while_a_pass_runs(store: Store, store_url: str) -> None:
    await record(store, *(expiring(NOW - KEEP - HOUR) for _ in range(2000)))
    other = Store.open(store_url)
    a_pass = asyncio.create_task(make_pass(store))
    made: list[RecordRow] = []
    while not a_pass.done():
        if len(made) == 500:  # enough, however long the pass takes: a page has to hold them
            await asyncio.sleep(0.01)
            continue
        made.append(expiring(NOW + HOUR))
        await other.record(made[-1])
    await a_pass
    await other.close()
    assert len(made) > 3
    assert all(await left(store, *made))
    assert len((await store.list_records(RecordFilter(), 1000)).items) == len(made)


async def test_a_pass_is_made_once_in_an_interval_by_whichever_replica(store: Store) -> None:
    await store.note_duty("tidy", NOW - HOUR)
    await tidy_at(store, NOW).run()
    late = expiring(NOW - KEEP - HOUR)
    await record(store, late)
    await tidy_at(store, NOW + timedelta(seconds=30)).run()
    assert await left(store, late) == [True]


@pytest.mark.parametrize("last", [None, NOW - 365 * DAY, NOW + DAY])
async def test_a_pass_long_after_the_last_or_before_it_deletes_nothing(
    store: Store, last: datetime | None
) -> None:
    # As after a step of the clock, which would have everything expired.
    row = expiring(NOW - KEEP - HOUR)
    await record(store, row)
    if last is not None:
        await store.note_duty("tidy", last)
    await tidy_at(store, NOW).run()
    assert await left(store, row) == [True]
    # An interval later it is believed.
    await store.note_duty("tidy", NOW - HOUR)
    await tidy_at(store, NOW).run()
    assert await left(store, row) == [False]


async def test_a_clock_that_is_not_the_databases_deletes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = expiring(NOW - KEEP - HOUR)
    await record(store, row)
    await store.note_duty("tidy", NOW - HOUR)

    async def another_clock() -> datetime:
        return NOW - timedelta(seconds=61)

    monkeypatch.setattr(store, "clock", another_clock)
    await tidy_at(store, NOW).run()
    assert await left(store, row) == [True]


# --- revocations -----------------------------------------------------------------------


async def revoke(store: Store, row: RecordRow, shard: int = 0) -> None:
    await store.revoke(
        RevocationRow(
            serial_number=row.serial_number, issuer=row.issuer, shard=shard, reason=1,
            revoked_at=row.created_at, not_after=row.not_after, authenticator="cluster",
            caller="ops", request_id="r",
        )
    )  # fmt: skip


async def put_crl(
    store: Store,
    this_update: datetime,
    number: int,
    kind: CrlKind = CrlKind.FULL,
    *,
    shard: int = 0,
    through: int = 10**6,
) -> None:
    before = [crl.number for crl in await store.list_crls() if crl.shard == shard]
    assert await store.put_crl(
        CrlRow(
            issuer="mesh-1", shard=shard, kind=kind, number=number,
            base_number=1 if kind is CrlKind.DELTA else None, this_update=this_update,
            next_update=this_update + DAY, through=through, entries=0, document=b"crl",
        ),
        after=max(before, default=0),
    )  # fmt: skip


async def test_a_revocation_goes_once_a_full_crl_of_its_shard_came_after_the_expiry(
    store: Store,
) -> None:
    await store.put_issuer(issuer_row(state=IssuerState.RETIRED))
    rows = [expiring(NOW - KEEP - HOUR) for _ in range(2)]
    lately = expiring(NOW - KEEP + HOUR)
    await record(store, *rows, lately)
    for shard, row in enumerate((*rows, lately)):
        await revoke(store, row, shard=shard % 2)

    async def are_kept() -> list[bool]:
        return [
            await store.get_revocation(row.serial_number) is not None for row in (*rows, lately)
        ]

    await make_pass(store)
    assert await left(store, *rows, lately) == [False, False, True]
    assert await are_kept() == [True, True, True]  # no CRL yet
    await put_crl(store, rows[0].not_after, 1)
    await put_crl(store, NOW, 2, CrlKind.DELTA)
    await put_crl(store, NOW, 1, CrlKind.DELTA, shard=1)
    await make_pass(store)
    assert await are_kept() == [True, True, True]  # of the very moment; and deltas do not count
    await put_crl(store, rows[0].not_after + timedelta(seconds=1), 3)
    await make_pass(store)
    assert await are_kept() == [False, True, True]  # another shard is another CRL
    await put_crl(store, NOW, 2, shard=1)
    await make_pass(store)
    assert await are_kept() == [False, False, True]


async def test_a_revocation_that_came_after_the_expiry_stays_until_a_full_crl_tells(
    store: Store,
) -> None:
    # A replica whose clock is behind takes it although it has expired.
    await store.put_issuer(issuer_row(state=IssuerState.ACTIVE))
    row = expiring(NOW - KEEP - HOUR)
    await revoke(store, expiring(NOW + DAY))
    before = await store.latest_revocation()
    await put_crl(store, NOW - HOUR, 1, through=before)
    await revoke(store, row)
    await make_pass(store)
    assert await store.get_revocation(row.serial_number) is not None
    await put_crl(store, NOW - HOUR, 2, through=before + 1)
    await make_pass(store)
    assert await store.get_revocation(row.serial_number) is None


async def test_revocations_of_an_issuer_that_is_gone_need_no_crl(store: Store) -> None:
    await store.put_issuer(issuer_row(state=IssuerState.GONE))
    rows = [expiring(NOW - KEEP - HOUR) for _ in range(600)]
    for row in rows:
        await revoke(store, row)
    await make_pass(store)
    assert await store.revocations_of([row.serial_number for row in rows]) == {}


async def test_the_walks_of_a_pass_are_served_by_indexes(store: Store) -> None:
    for after in (None, (NOW, 7)):
        plan = await plan_of(store, oldest_records(NOW, after, 500))
        assert "records_newest" in plan
        if store.database.is_sqlite:
            assert "COVERING" in plan, plan
        assert "revocations_not_after" in await plan_of(store, expired_revocations(NOW, after, 500))


# --- as a whole ------------------------------------------------------------------------


def test_a_service_deletes_what_expired_while_it_issues(service_factory: ServiceFactory) -> None:
    tidy = {"keep": "1s", "interval": "1s"}
    with service_factory.start(tidy=tidy) as service:
        role = service.put_role({"spiffe": "own", "key_type": "ec", "ttl": "1s"})
        gone = service.issue(pb.IssueRequest(role=role)).serial_number
        ends = time.monotonic() + 60
        while not _has_tidied(service):
            assert time.monotonic() < ends, service.whole_log()[-2000:]
            last = service.issue(pb.IssueRequest()).serial_number
        with pytest.raises(grpc.RpcError) as caught:
            service.get_record(gone)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert service.get_record(last).serial_number == last


def _has_tidied(service: Service) -> bool:
    return any(
        line["event"] == "expired records tidied away" and line["records"]
        for line in service.new_log_lines()
    )
