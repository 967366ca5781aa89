"""Fills a store with records as years of a busy mesh would, in a minute.

The rows go into the very tables of the service, past the service itself: indexes are
taken off meanwhile and made again, and nothing is flushed to disk before the end.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from cryptography import x509
from meshmint_server.store.schema import (
    record_names,
    records,
    revocations,
    to_microseconds,
)
from meshmint_server.store.url import PostgresUrl, SqliteUrl, parse_store_url
from sqlalchemy import Connection, Table, create_engine, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex

__all__ = ["PROBES", "Probe", "fill_store"]

# So many records of one workload lie scattered over the whole age of every store: they
# are what lists look for, and in a store of 0 records they are all there is.
PROBES = 200
# One of so many is revoked. They live for 90 days, so that every CRL lists them all.
REVOKED_ONE_OF = 10

_AGE = timedelta(days=30)
_BATCH = 5_000
_NAMESPACES = [f"team-{number}" for number in range(60)]
_ACCOUNTS = [f"service-{number}" for number in range(150)]
_LIFETIMES = [timedelta(hours=1)] * 8 + [timedelta(hours=24), timedelta(days=7)]

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Probe:
    """A workload that the service has issued to, whose records are to be searched for.

    Attributes:
        name: Its DNS name.
        certificate: One of its certificates, DER: the pattern of all that are filled in.
    """

    trust_domain: str
    issuer: str
    role: str
    authenticator: str
    caller: str
    spiffe_id: str
    name: str
    certificate: bytes


def fill_store(url: str, size: int, probe: Probe, progress: Progress) -> int:
    """Fills a migrated store with `size` records, and the probe's; tells how many are revoked."""
    rows = _Rows(size, probe)
    where = parse_store_url(url)
    if isinstance(where, SqliteUrl):
        _fill_sqlite(where, rows, progress)
    else:
        asyncio.run(_fill_postgresql(where, rows, progress))
    return rows.revoked


class _Rows:
    """The rows in batches, by table."""

    def __init__(self, size: int, probe: Probe) -> None:
        self._size = size + PROBES
        self._probe = probe
        self._random = random.Random(size)  # noqa: S311 - the same store every time
        self._pattern, self._tail = _around_serial(probe.certificate)
        self._now = datetime.now(UTC)
        self.revoked = 0

    def batches(self, first: int) -> Iterator[dict[Table, list[tuple[Any, ...]]]]:
        """Rows by table, with sequences from `first` on; the oldest first."""
        for start in range(0, self._size, _BATCH):
            batch: dict[Table, list[tuple[Any, ...]]] = {
                records: [],
                record_names: [],
                revocations: [],
            }
            for number in range(start, min(start + _BATCH, self._size)):
                self._add(batch, first + number, number)
            yield batch

    def _add(self, batch: dict[Table, list[tuple[Any, ...]]], sequence: int, number: int) -> None:
        probe, choice = self._probe, self._random
        is_probe = number * PROBES % self._size < PROBES
        namespace, account = choice.choice(_NAMESPACES), choice.choice(_ACCOUNTS)
        svid = f"spiffe://{probe.trust_domain}/ns/{namespace}/sa/{account}"
        name = f"{account}.{namespace}.svc.cluster.local"
        caller = f"system:serviceaccount:{namespace}:{account}"
        if is_probe:
            svid, name, caller = probe.spiffe_id, probe.name, probe.caller
        has_name = is_probe or number % 3 == 0
        is_revoked = not is_probe and number % REVOKED_ONE_OF == 1
        created = self._now - _AGE + _AGE * (number / self._size)
        lifetime = timedelta(days=90) if is_revoked else choice.choice(_LIFETIMES)
        created_at = to_microseconds(created)
        not_after = to_microseconds((created + lifetime).replace(microsecond=0))
        # As the service makes them: the time in seconds, then 15 random bytes.
        serial = int(created.timestamp()).to_bytes(4, "big") + secrets.token_bytes(15)
        names = [f"URI:{svid}", *([f"DNS:{name}"] if has_name else [])]
        batch[records].append(
            (
                sequence, serial.hex(), self._pattern + serial + self._tail, probe.issuer,
                probe.role if is_probe else f"role-{number % 20}", probe.authenticator, caller,
                svid, "", json.dumps(names), created_at - 30_000_000, not_after, created_at,
                secrets.token_hex(16),
            )
        )  # fmt: skip
        if has_name:
            batch[record_names].append((name, created_at, sequence))
        if is_revoked:
            self.revoked += 1
            batch[revocations].append(
                (
                    self.revoked, serial.hex(), probe.issuer, 0, number % 2 * 4, created_at,
                    not_after, probe.authenticator, "system:serviceaccount:ops:revoker",
                    secrets.token_hex(16),
                )
            )  # fmt: skip


def _around_serial(certificate: bytes) -> tuple[bytes, bytes]:
    serial = x509.load_der_x509_certificate(certificate).serial_number.to_bytes(19, "big")
    before, found, after = certificate.partition(b"\x02\x13" + serial)
    assert found, "the pattern's serial number does not have 19 bytes"
    return before + b"\x02\x13", after


def _columns(table: Table) -> list[str]:
    return [column.name for column in table.columns]


_FILLED = (records, record_names, revocations)


def _fill_sqlite(where: SqliteUrl, rows: _Rows, progress: Progress) -> None:
    engine = create_engine(f"sqlite:///{where.path}")
    with engine.connect() as connection:
        for pragma in ("synchronous=OFF", "cache_size=-1000000", "temp_store=MEMORY"):
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        for index in _indexes():
            connection.exec_driver_sql(f"DROP INDEX {index}")
        first = _next_sequence(connection)
        for batch in rows.batches(first):
            for table, values in batch.items():
                if values:
                    marks = ", ".join("?" * len(table.columns))
                    connection.exec_driver_sql(
                        f"INSERT INTO {table.name} ({', '.join(_columns(table))}) "  # noqa: S608
                        f"VALUES ({marks})",
                        values,
                    )
            connection.commit()
            progress(len(batch[records]))
        for table in _FILLED:
            for made in table.indexes:
                made.create(connection)
        connection.commit()
        connection.exec_driver_sql("PRAGMA synchronous=FULL")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    engine.dispose()


def _next_sequence(connection: Connection) -> int:
    return int(connection.execute(select(func.max(records.c.sequence))).scalar_one() or 0) + 1


def _indexes() -> Sequence[str]:
    return [str(index.name) for table in _FILLED for index in table.indexes]


async def _fill_postgresql(where: PostgresUrl, rows: _Rows, progress: Progress) -> None:
    connection = await asyncpg.connect(where.dsn)
    try:
        await connection.execute("SET synchronous_commit = off; SET maintenance_work_mem = '512MB'")
        for index in _indexes():
            await connection.execute(f"DROP INDEX {index}")
        first = await connection.fetchval("SELECT coalesce(max(sequence), 0) + 1 FROM records")
        for batch in rows.batches(first):
            for table, values in batch.items():
                await connection.copy_records_to_table(
                    table.name, records=values, columns=_columns(table)
                )
            progress(len(batch[records]))
        for table in _FILLED:
            for made in table.indexes:
                await connection.execute(
                    str(CreateIndex(made).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
                )
        for table in (records, revocations):
            used = f"SELECT coalesce(max(sequence), 0) + 1 FROM {table.name}"  # noqa: S608
            sequence = f"pg_get_serial_sequence('{table.name}', 'sequence')"
            await connection.execute(f"SELECT setval({sequence}, ({used}), false)")
        # What autovacuum would have done in all that time.
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
