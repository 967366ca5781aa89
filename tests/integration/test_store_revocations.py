"""Revocations in both databases: one row each, the first stands, and a tail misses none."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from meshmint_server.errors import InvalidRequest
from meshmint_server.store import RevocationRow, RevokedSerial, Store
from meshmint_server.store.schema import metadata
from sqlalchemy import Connection, select
from support.rows import NOON, record_row


@asynccontextmanager
async def stores(url: str, count: int) -> AsyncIterator[list[Store]]:
    """As many replicas would have them."""
    opened = [Store.open(url) for _ in range(count)]
    await opened[0].migrate()
    try:
        yield opened
    finally:
        for store in opened:
            await store.close()


def revocation_row(**changes: Any) -> RevocationRow:
    row = RevocationRow(
        serial_number=f"7{secrets.token_hex(19)}",
        issuer="mesh-1",
        shard=0,
        reason=1,
        revoked_at=NOON,
        not_after=NOON + timedelta(hours=1),
        authenticator="cluster",
        caller="system:serviceaccount:shop:cart",
        request_id=secrets.token_hex(16),
    )
    return replace(row, **changes)


async def test_a_revocation_comes_back_as_it_was_and_the_first_one_stands(store_url: str) -> None:
    async with stores(store_url, 2) as (one, other):
        row = revocation_row(serial_number="abc01")
        assert await one.revoke(row) == row
        assert await other.get_revocation("0A:bC:01") == row
        later = replace(row, reason=4, request_id="later", revoked_at=NOON + timedelta(days=1))
        assert await other.revoke(later) == row
        assert await one.revocations_of(["abc01", "1234"]) == {"abc01": row}
        assert await one.get_revocation("1234") is None
        assert await one.revocations_of([]) == {}
        with pytest.raises(InvalidRequest):
            await one.get_revocation("abc\n")


async def test_a_revocation_is_one_row_and_a_repetition_none(store_url: str) -> None:
    def dump(sync: Connection) -> dict[str, list[Any]]:
        return {
            table.name: list(sync.execute(select(table).order_by(*table.primary_key)))
            for table in metadata.sorted_tables
        }

    async with stores(store_url, 1) as [store]:
        record, first = record_row(), revocation_row()
        await store.record(record)
        await store.revoke(first)
        before = await store.database.run(dump)
        row = revocation_row(serial_number=record.serial_number)
        for _ in range(2):
            assert await store.revoke(row) == row
            after = await store.database.run(dump)
            assert len(after["revocations"]) == 2
            # No CRL, no record, and no revision that would have a worker read anything anew.
            assert after | {"revocations": before["revocations"]} == before


async def test_of_two_replicas_that_revoke_the_same_one_is_first(store_url: str) -> None:
    async with stores(store_url, 2) as both:
        for _ in range(20):
            rows = [revocation_row(serial_number="abc" + secrets.token_hex(8))] * 2
            rows[1] = replace(rows[0], request_id="other", reason=4)
            outcomes = await asyncio.gather(
                *(store.revoke(row) for store, row in zip(both, rows, strict=True))
            )
            assert outcomes[0] == outcomes[1]
            assert outcomes[0] in rows
        assert await both[0].latest_revocation() == len(
            await both[0].revocations_after(0)
        )  # nothing but the first took a number


async def test_who_follows_the_sequence_misses_none_while_replicas_revoke(store_url: str) -> None:
    async with stores(store_url, 3) as (one, other, reader):
        total = 150

        async def revoke(store: Store) -> None:
            for _ in range(total // 2):
                await store.revoke(revocation_row())

        async def follow() -> list[RevokedSerial]:
            seen: list[RevokedSerial] = []
            while len(seen) < total:
                seen += await reader.revocations_after(seen[-1].sequence if seen else 0)
            return seen

        # As in a replica: several of its requests at once.
        revoking = asyncio.gather(revoke(one), revoke(other))
        seen = await asyncio.wait_for(follow(), 60)
        await revoking
        assert seen == list(await reader.revocations_after(0))


async def test_a_tail_comes_in_parts(store_url: str) -> None:
    async with stores(store_url, 1) as (store,):
        rows = [await store.revoke(revocation_row(reason=reason)) for reason in (0, 1, 4)]
        first = await store.revocations_after(0, limit=2)
        rest = await store.revocations_after(first[-1].sequence, limit=2)
        assert [(one.serial_number, one.reason, one.revoked_at) for one in (*first, *rest)] == [
            (row.serial_number, row.reason, row.revoked_at) for row in rows
        ]
        assert await store.revocations_after(rest[-1].sequence) == ()
        assert await store.latest_revocation() == rest[-1].sequence


async def test_a_shard_lists_its_own_up_to_a_point_without_what_has_expired(
    store_url: str,
) -> None:
    async with stores(store_url, 1) as (store,):
        mine = [await store.revoke(revocation_row(shard=1)) for _ in range(3)]
        expired = await store.revoke(revocation_row(shard=1, not_after=NOON - timedelta(hours=1)))
        through = await store.latest_revocation(("mesh-1", 1))
        for stranger in ({"shard": 0}, {"shard": 1, "issuer": "mesh-2"}, {"shard": 1}):
            await store.revoke(revocation_row(**stranger))
        listed: list[RevokedSerial] = []
        after: int | None = 0
        while after is not None:
            part, after = await store.list_shard(
                "mesh-1", 1, after=after, through=through, expires_from=NOON, limit=2
            )
            listed += part
        assert [one.serial_number for one in listed] == [row.serial_number for row in mine]
        assert expired.serial_number not in {one.serial_number for one in listed}
        assert await store.latest_revocation(("mesh-3", 0)) == 0
