"""Statements of the tidying: what has expired, a small part at a time, and its deletion.

Each part reads an index from where the last one ended, and each deletion is one short
transaction by primary keys: who issues meanwhile waits for nothing long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, Table, delete, insert, literal, select, tuple_, update

from meshmint_server.store.schema import duties, record_names, records, revocations

__all__ = [
    "ExpiredRecords",
    "ExpiredRevocation",
    "delete_records",
    "delete_revocations",
    "expired_revocations",
    "fetch_duty",
    "fetch_expired_records",
    "fetch_expired_revocations",
    "oldest_records",
    "write_duty",
]

Position = tuple[datetime, int]


@dataclass(frozen=True, slots=True)
class ExpiredRecords:
    """A part of the records, oldest first.

    Attributes:
        sequences: Those of them that have expired.
        position: Where the next part begins; None behind the last.
    """

    sequences: tuple[int, ...]
    position: Position | None


@dataclass(frozen=True, slots=True)
class ExpiredRevocation:
    """A revocation of a certificate that has expired.

    Attributes:
        shard: Issuer and number of the CRL that lists it.
    """

    sequence: int
    shard: tuple[str, int]
    not_after: datetime

    @property
    def position(self) -> Position:
        """Where the next part begins, if this one ends here."""
        return self.not_after, self.sequence


def oldest_records(cutoff: datetime, after: Position | None, limit: int) -> Select[Any]:
    """The oldest records from a position on, as an index alone can tell them."""
    columns = (records.c.created_at, records.c.sequence, records.c.not_after)
    statement = select(*columns).where(records.c.created_at < cutoff)
    return _part(statement, records.c.created_at, records.c.sequence, after, limit)


def expired_revocations(cutoff: datetime, after: Position | None, limit: int) -> Select[Any]:
    """The revocations of certificates that expired before `cutoff`, the oldest first."""
    columns = ("sequence", "issuer", "shard", "not_after")
    statement = select(*(revocations.c[name] for name in columns)).where(
        revocations.c.not_after < cutoff
    )
    return _part(statement, revocations.c.not_after, revocations.c.sequence, after, limit)


def _part(
    statement: Select[Any], time: Any, sequence: Any, after: Position | None, limit: int
) -> Select[Any]:
    if after is not None:
        position = tuple_(literal(after[0], time.type), literal(after[1], sequence.type))
        statement = statement.where(tuple_(time, sequence) > position)
    return statement.order_by(time, sequence).limit(limit)


def fetch_expired_records(
    connection: Connection, cutoff: datetime, after: Position | None, limit: int
) -> ExpiredRecords:
    """Looks at so many of the oldest records from a position on.

    A certificate expires after it is made: behind the first record that was made after
    `cutoff` there is nothing to find, and the parts end.
    """
    rows = connection.execute(oldest_records(cutoff, after, limit)).all()
    return ExpiredRecords(
        tuple(row.sequence for row in rows if row.not_after < cutoff),
        (rows[-1].created_at, rows[-1].sequence) if len(rows) == limit else None,
    )


def delete_records(connection: Connection, sequences: Sequence[int]) -> None:
    """Deletes records and the names that they are found by."""
    for table in (record_names, records):
        _delete(connection, table, sequences)


def fetch_expired_revocations(
    connection: Connection, cutoff: datetime, after: Position | None, limit: int
) -> tuple[ExpiredRevocation, ...]:
    """A part of what `expired_revocations` tells; fewer than `limit` are the last part."""
    rows = connection.execute(expired_revocations(cutoff, after, limit))
    return tuple(
        ExpiredRevocation(row.sequence, (row.issuer, row.shard), row.not_after) for row in rows
    )


def delete_revocations(connection: Connection, sequences: Sequence[int]) -> None:
    """Deletes revocations."""
    _delete(connection, revocations, sequences)


def _delete(connection: Connection, table: Table, sequences: Sequence[int]) -> None:
    connection.execute(delete(table).where(table.c.sequence.in_(sequences)))


def fetch_duty(connection: Connection, name: str) -> datetime | None:
    """When a duty was last done."""
    statement = select(duties.c.done_at).where(duties.c.name == name)
    return connection.execute(statement).scalar_one_or_none()


def write_duty(connection: Connection, name: str, done_at: datetime) -> None:
    """Notes when a duty was done."""
    values = {"name": name, "done_at": done_at}
    changed = connection.execute(
        update(duties).where(duties.c.name == name).values(done_at=done_at)
    )
    if changed.rowcount == 0:
        connection.execute(insert(duties).values(values))
