"""Kept replies in both databases: one for each tag, with its record, for a while."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from meshmint_server.errors import StoreUnavailable
from meshmint_server.store import KeptReply, RecordFilter, RecordRow, ReplyRow, Store
from meshmint_server.store.replies import reply_by_tag
from sqlalchemy import Connection
from support.cutting_server import CuttingServer, Loses
from support.plans import plan_of
from support.postgres import PORT, PostgresServer
from support.rows import NOON, record_row

LATER = NOON + timedelta(minutes=10)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = Store.open(store_url)
    await store.migrate()
    yield store
    await store.close()


def replying(tag: bytes | None = None, **changes: Any) -> RecordRow:
    """A row with a reply that expires ten minutes after noon."""
    reply = ReplyRow(tag or secrets.token_bytes(32), secrets.token_bytes(300), LATER)
    return record_row(reply=reply, **changes)


def tag_of(row: RecordRow) -> bytes:
    assert row.reply
    return row.reply.tag


async def found(store: Store, row: RecordRow) -> KeptReply | None:
    return await store.find_reply(tag_of(row), NOON)


async def recorded(store: Store, **chosen: Any) -> set[str]:
    page = await store.list_records(RecordFilter(**chosen), 1000)
    return {row.serial_number for row in page.items}


async def nameless(store: Store) -> int:
    """How many rows to search by belong to no record."""
    orphans = (
        "SELECT count(*) FROM record_names WHERE sequence NOT IN (SELECT sequence FROM records)"
    )

    def count(connection: Connection) -> int:
        return int(connection.exec_driver_sql(orphans).scalar_one())

    return await store.database.run(count)


async def test_a_reply_is_found_with_its_record(store: Store) -> None:
    row, other = replying(), replying()
    assert await asyncio.gather(store.record(row), store.record(other)) == [True, True]
    assert row.reply
    assert await found(store, row) == KeptReply(row.reply, row)
    assert await store.find_reply(secrets.token_bytes(32), NOON) is None


async def test_the_second_with_a_tag_is_not_recorded_and_changes_nothing(store: Store) -> None:
    first = replying()
    second = replying(tag_of(first), names=("DNS:second.example",))
    assert await store.record(first)
    assert not await store.record(second)
    assert await recorded(store) == {first.serial_number}
    assert await recorded(store, name="second.example") == set()
    assert await nameless(store) == 0
    assert (kept := await found(store, second))
    assert kept.record == first


async def test_in_one_batch_one_with_each_tag_is_recorded_and_so_are_all_others(
    store: Store,
) -> None:
    # While this one is being committed, the others gather.
    before = asyncio.create_task(store.record(record_row(names=())))
    await asyncio.sleep(0)
    names = ("DNS:one.example", "DNS:two.example")
    rows = [replying(names=names) if count % 2 else record_row(names=names) for count in range(20)]
    rows[10:10] = [replying(tag_of(rows[3]), names=names), replying(tag_of(rows[5]), names=names)]
    outcomes = await asyncio.gather(*map(store.record, rows))
    await before
    won = [row for row, is_first in zip(rows, outcomes, strict=True) if is_first]
    assert len(won) == 20
    assert len({tag_of(row) for row in won if row.reply}) == 10
    for name in ("one.example", "two.example"):
        assert await recorded(store, name=name) == {row.serial_number for row in won}
    assert await nameless(store) == 0
    for row in won:
        if row.reply:
            assert await found(store, row) == KeptReply(row.reply, row)


async def test_indexes_serve_the_look_up(store: Store) -> None:
    await plan_of(store, reply_by_tag(b"\x01" * 32))


async def test_many_are_looked_up_at_once_each_its_own(store: Store) -> None:
    rows = [replying() for _ in range(40)]
    await asyncio.gather(*map(store.record, rows))
    unknown = [secrets.token_bytes(32) for _ in range(20)]
    looks = [*(found(store, row) for row in rows), *(store.find_reply(t, NOON) for t in unknown)]
    kept = await asyncio.gather(*looks)
    assert [one and one.record for one in kept] == [*rows, *([None] * 20)]


async def test_one_that_gives_up_looking_takes_nobody_along(store: Store) -> None:
    rows = [replying() for _ in range(9)]
    await asyncio.gather(*map(store.record, rows))
    looks = [asyncio.create_task(found(store, row)) for row in rows]
    await asyncio.sleep(0)
    for look in looks[::3]:
        look.cancel()
    done = await asyncio.gather(*looks, return_exceptions=True)
    assert all(isinstance(kept, KeptReply) for place, kept in enumerate(done) if place % 3)


async def test_looking_without_a_database_is_unavailable_and_works_afterwards(
    store_url: str,
) -> None:
    store = Store.open(store_url)
    looks = [store.find_reply(secrets.token_bytes(32), NOON) for _ in range(3)]
    outcomes = await asyncio.gather(*looks, return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    await store.migrate()
    assert await store.find_reply(secrets.token_bytes(32), NOON) is None
    await store.close()


async def test_an_expired_reply_is_not_found_and_makes_way_for_the_next(store: Store) -> None:
    first = replying()
    await store.record(first)
    assert await store.find_reply(tag_of(first), LATER - timedelta(microseconds=1))
    assert await store.find_reply(tag_of(first), LATER) is None
    second = replying(tag_of(first))
    assert await store.record(second)
    assert (kept := await found(store, second))
    assert kept.record == second
    # The record of the first stays, as any.
    assert await store.get_record(first.serial_number) == first


async def test_expired_replies_go_the_oldest_first_and_the_others_stay(store: Store) -> None:
    rows = [replying() for _ in range(7)]
    rows[2] = replace(rows[2], reply=replace(rows[2].reply, expires_at=LATER + timedelta(hours=1)))  # type: ignore[type-var]
    for row in rows:
        await store.record(row)
    assert await store.delete_expired_replies(NOON, 5) == 0
    assert await store.delete_expired_replies(LATER, 5) == 4
    left = [row for row in rows if await found(store, row)]
    assert left == [rows[2], rows[5], rows[6]]
    assert await store.delete_expired_replies(LATER, 5) == 2
    assert await store.delete_expired_replies(LATER, 5) == 0
    assert await found(store, rows[2])
    assert len(await recorded(store)) == 7


async def test_two_replicas_agree_on_one_of_each(store_url: str) -> None:
    stores = [Store.open(store_url) for _ in range(2)]
    await stores[0].migrate()
    tags = [secrets.token_bytes(32) for _ in range(120)]
    orders = [tags, tags[::-1]]
    for store in stores:
        await store.record(record_row(role="warm-up"))
    rows = [[replying(tag) for tag in order] for order in orders]
    outcomes = await asyncio.gather(
        *(store.record(row) for store, mine in zip(stores, rows, strict=True) for row in mine)
    )
    winners = [
        row for row, is_first in zip([*rows[0], *rows[1]], outcomes, strict=True) if is_first
    ]
    assert sorted(map(tag_of, winners)) == sorted(tags)
    assert await recorded(stores[1], role="web") == {row.serial_number for row in winners}
    for store in stores:
        for row in winners:
            assert (kept := await found(store, row))
            assert kept.record == row
        await store.close()


async def test_two_replicas_with_the_same_tags_do_not_wait_in_a_circle(postgres_url: str) -> None:
    stores = [Store.open(postgres_url) for _ in range(2)]
    await stores[0].migrate()

    def slow_down(connection: Connection) -> None:
        # Each has the first of its tags while the other goes for it.
        for statement in (
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(0.1); RETURN NEW; END $$",
            "CREATE TRIGGER slow BEFORE INSERT ON replies FOR EACH ROW EXECUTE FUNCTION slow()",
        ):
            connection.exec_driver_sql(statement)

    await stores[0].database.run(slow_down, writes=True)
    tags = [secrets.token_bytes(32) for _ in range(5)]
    for store in stores:
        await store.record(record_row())
    mine, theirs = ([replying(tag) for tag in order] for order in (tags, tags[::-1]))
    # One batch each: while the first is being committed, the others gather.
    outcomes = await asyncio.gather(
        *(
            store.record(row)
            for store, rows in zip(stores, (mine, theirs), strict=True)
            for row in (record_row(), *rows)
        )
    )
    assert sum(outcomes) == 2 + 5
    for store in stores:
        await store.close()


@pytest.fixture
async def cutting_server(postgres_server: PostgresServer) -> AsyncIterator[CuttingServer]:
    server = CuttingServer(f"{postgres_server.directory}/.s.PGSQL.{PORT}")
    await server.start()
    yield server
    await server.stop()


async def test_a_reply_whose_commit_lost_its_answer_is_found_by_its_own_request(
    postgres_url: str, cutting_server: CuttingServer
) -> None:
    store = Store.open(postgres_url)
    await store.migrate()
    through = Store.open(cutting_server.reroute(postgres_url))
    await through.record(record_row(role="warm-up"))
    rows = [replying(), record_row(), replying()]
    cutting_server.loses = "answer"
    outcomes = await asyncio.gather(*map(through.record, rows))
    assert cutting_server.lost == 1
    assert outcomes[1]
    for row in (rows[0], rows[2]):
        assert (kept := await found(store, row))
        assert kept.record == row
    assert await recorded(store, role="web") == {row.serial_number for row in rows}
    await through.close()
    await store.close()


@pytest.mark.parametrize("loses", ["question", "answer"])
async def test_a_look_up_outlives_a_connection_that_breaks(
    postgres_url: str, cutting_server: CuttingServer, loses: Loses
) -> None:
    store = Store.open(cutting_server.reroute(postgres_url))
    await store.migrate()
    row = replying()
    await store.record(row)
    assert await found(store, row)
    cutting_server.loses = loses
    assert await found(store, row)
    assert cutting_server.lost == 1
    await store.close()
