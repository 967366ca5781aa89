"""Writes records to PostgreSQL: a batch is one statement, one transaction, one round trip.

On a connection of its own, beside SQLAlchemy, which would send every row by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg

from meshmint_server.store.database import (
    FAULTS,
    TimeLimits,
    connect_postgres,
    refusal,
    unavailable,
)
from meshmint_server.store.record_values import COLUMNS, record_values, searched_names
from meshmint_server.store.rows import RecordRow
from meshmint_server.store.url import PostgresUrl

__all__ = ["PostgresWriter"]

_NAMES = ", ".join(COLUMNS)
_TYPES = {"certificate": "bytea", "not_before": "int8", "not_after": "int8", "created_at": "int8"}
_ARRAYS = ", ".join(
    f"${place}::{_TYPES.get(name, 'text')}[]" for place, name in enumerate(COLUMNS, start=1)
)
_INSERT = f"""
WITH inserted AS (
    INSERT INTO records ({_NAMES})
    SELECT {_NAMES.replace("names", "names::json")} FROM unnest({_ARRAYS}) AS given ({_NAMES})
    RETURNING serial_number, created_at, sequence
)
INSERT INTO record_names (name, created_at, sequence)
SELECT searched.name, inserted.created_at, inserted.sequence
FROM unnest(${len(COLUMNS) + 1}::text[], ${len(COLUMNS) + 2}::text[]) AS searched (name, serial)
JOIN inserted ON inserted.serial_number = searched.serial
"""  # noqa: S608
_COUNT = """
SELECT count(*) FROM records JOIN unnest($1::text[], $2::bytea[]) AS given (serial, certificate)
ON records.serial_number = given.serial AND records.certificate = given.certificate
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

    async def write(self, rows: Sequence[RecordRow]) -> None:
        """See `RecordWriter`."""
        columns = [list(column) for column in zip(*map(record_values, rows), strict=True)]
        names = [(name, row.serial_number) for row in rows for name in searched_names(row)]
        columns += [[name for name, _ in names], [serial for _, serial in names]]
        try:
            async with asyncio.timeout(self._limits.transaction):
                try:
                    await self._insert(columns)
                except _Broken:
                    await self._insert_again(columns)
        except _Broken as fault:
            raise unavailable(fault.__cause__ or fault) from None
        except FAULTS as fault:
            raise refusal(fault) from None

    async def close(self) -> None:
        """Closes the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def _insert(self, columns: Sequence[list[Any]]) -> None:
        is_new = self._connection is None
        if self._connection is None:
            self._connection = await connect_postgres(self._url, self._limits)
        try:
            await self._connection.execute(_INSERT, *columns)
        except BaseException as fault:
            if not isinstance(fault, Exception) or _ends_the_session(fault):
                await self.close()
                if isinstance(fault, Exception) and not is_new:
                    raise _Broken from fault
            raise

    async def _insert_again(self, columns: Sequence[list[Any]]) -> None:
        """Inserts what a broken connection may have inserted, or may be about to.

        The serial numbers are unique: if that was so, the database refuses these rows,
        and has them as they are.
        """
        try:
            await self._insert(columns)
        except asyncpg.UniqueViolationError:
            assert self._connection is not None  # noqa: S101
            serials, certificates = columns[0], columns[1]
            found = await self._connection.fetchval(_COUNT, serials, certificates)
            if found != len(serials):
                raise


class _Broken(Exception):
    """A connection that had worked broke; its cause says how."""


def _ends_the_session(fault: Exception) -> bool:
    if isinstance(fault, OSError | asyncpg.InterfaceError):
        return True
    # 08: the connection; 57P0x: the server shuts down, has crashed or starts.
    return str(getattr(fault, "sqlstate", "")).startswith(("08", "57P0"))
