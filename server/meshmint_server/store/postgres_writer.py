"""Writes records to PostgreSQL: a batch is one statement, one transaction, one round trip.

On a connection of its own, beside SQLAlchemy, which would send every row by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from typing import Any

import asyncpg

from meshmint_server.store.database import (
    FAULTS,
    TimeLimits,
    connect_postgres,
    refusal,
    unavailable,
)
from meshmint_server.store.record_values import COLUMNS, record_values, reply_values, searched_names
from meshmint_server.store.rows import RecordRow
from meshmint_server.store.url import PostgresUrl

__all__ = ["PostgresWriter"]

_NAMES = ", ".join(COLUMNS)
_TYPES = {"certificate": "bytea", "not_before": "int8", "not_after": "int8", "created_at": "int8"}
_ARRAYS = ", ".join(
    f"${place}::{_TYPES.get(name, 'text')}[]" for place, name in enumerate(COLUMNS, start=1)
)
_NO_REPLY = (None, None, None)
_GIVEN = len(COLUMNS)
# A reply's tag is taken in an order that all writers keep, so that none waits for another
# in a circle.
_INSERT = f"""
WITH given AS (
    SELECT * FROM unnest({_ARRAYS}, ${_GIVEN + 1}::bytea[], ${_GIVEN + 2}::bytea[],
                         ${_GIVEN + 3}::int8[])
    AS given ({_NAMES}, tag, sealed, expires_at)
), replied AS (
    INSERT INTO replies (tag, serial_number, sealed, expires_at)
    SELECT tag, serial_number, sealed, expires_at FROM given WHERE tag IS NOT NULL ORDER BY tag
    ON CONFLICT (tag) DO NOTHING
    RETURNING serial_number
), inserted AS (
    INSERT INTO records ({_NAMES})
    SELECT {_NAMES.replace("names", "names::json")} FROM given
    WHERE tag IS NULL OR serial_number IN (SELECT serial_number FROM replied)
    RETURNING serial_number, created_at, sequence
), named AS (
    INSERT INTO record_names (name, created_at, sequence)
    SELECT searched.name, inserted.created_at, inserted.sequence
    FROM unnest(${_GIVEN + 4}::text[], ${_GIVEN + 5}::text[]) AS searched (name, serial)
    JOIN inserted ON inserted.serial_number = searched.serial
)
SELECT serial_number FROM given
WHERE tag IS NOT NULL AND serial_number NOT IN (SELECT serial_number FROM replied)
"""  # noqa: S608
_TAKEN = "SELECT tag FROM replies WHERE tag = ANY($1::bytea[])"
_MISSING = """
SELECT serial, tag IS NOT NULL
FROM unnest($1::text[], $2::bytea[], $3::bytea[]) AS given (serial, certificate, tag)
WHERE NOT EXISTS (
    SELECT FROM records
    WHERE records.serial_number = given.serial AND records.certificate = given.certificate
)
"""


class PostgresWriter:
    """Writes batches on a connection of its own, which is opened when first used.

    Args:
        url: The database.
        limits: How long it may take.
    """

    def __init__(self, url: PostgresUrl, limits: TimeLimits) -> None:
        self._url = url
        self._limits = limits
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def write(self, rows: Sequence[RecordRow]) -> Collection[str]:
        """See `RecordWriter`."""
        columns = _columns(rows)
        try:
            async with asyncio.timeout(self._limits.transaction), self._turn:
                try:
                    return await self._fetch(_INSERT, *columns)
                except _Broken:
                    return await self._insert_again(columns)
        except _Broken as fault:
            raise unavailable(fault.__cause__ or fault) from None
        except FAULTS as fault:
            raise refusal(fault) from None

    async def taken(self, tags: Sequence[bytes]) -> Collection[bytes]:
        """See `RecordWriter`."""
        try:
            async with asyncio.timeout(self._limits.transaction), self._turn:
                try:
                    return await self._fetch(_TAKEN, tags)
                except _Broken:
                    return await self._fetch(_TAKEN, tags)
        except _Broken as fault:
            raise unavailable(fault.__cause__ or fault) from None
        except FAULTS as fault:
            raise unavailable(fault) from None

    async def close(self) -> None:
        """Closes the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _fetch(self, statement: str, *arguments: Sequence[Any]) -> list[Any]:
        """The first column of what a statement returns.

        Raises:
            _Broken: A connection that had worked broke.
        """
        is_new = self._connection is None
        if self._connection is None:
            self._connection = await connect_postgres(self._url, self._limits)
        try:
            return [row[0] for row in await self._connection.fetch(statement, *arguments)]
        except BaseException as fault:
            if not isinstance(fault, Exception) or _ends_the_session(fault):
                await self.close()
                if isinstance(fault, Exception) and not is_new:
                    raise _Broken from fault
            raise

    async def _insert_again(self, columns: Sequence[Sequence[Any]]) -> Collection[str]:
        """Inserts what a broken connection may have inserted, or may be about to.

        Serial numbers and tags are unique: if that was so, the database refuses these rows,
        and has them as they are. A row whose tag is taken, by itself or by another, finds
        the reply that is kept.
        """
        try:
            return await self._fetch(_INSERT, *columns)
        except asyncpg.UniqueViolationError:
            assert self._connection is not None  # noqa: S101
            serials, certificates, tags = columns[0], columns[1], columns[_GIVEN]
            missing = await self._connection.fetch(_MISSING, serials, certificates, tags)
            if not all(has_tag for _, has_tag in missing):
                raise
            return [serial for serial, _ in missing]


class _Broken(Exception):
    """A connection that had worked broke; its cause says how."""


def _columns(rows: Sequence[RecordRow]) -> list[Sequence[Any]]:
    """The arrays that the statement takes."""
    names = [(name, row.serial_number) for row in rows for name in searched_names(row)]
    replies = [_NO_REPLY if row.reply is None else reply_values(row.reply) for row in rows]
    return [
        *(list(column) for column in zip(*map(record_values, rows), strict=True)),
        *(list(column) for column in zip(*replies, strict=True)),
        [name for name, _ in names],
        [serial for _, serial in names],
    ]


def _ends_the_session(fault: Exception) -> bool:
    if isinstance(fault, OSError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return True
    # 08: the connection; 57P0x: the server shuts down, has crashed or starts.
    return str(getattr(fault, "sqlstate", "")).startswith(("08", "57P0"))
