"""Writes records to SQLite: a batch is one statement, and so one transaction.

Python gives its lock up around every step of a statement, and then has to win it back
from a busy event loop. So everything that belongs to a batch is given to one statement
on a view of this connection, whose trigger spreads it over the tables. Nothing but the
writer's own thread touches the connection.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from meshmint_server.store.database import (
    FAULTS,
    SQLITE_SETTINGS,
    TimeLimits,
    refusal,
    sqlite_uri,
    unavailable,
)
from meshmint_server.store.record_values import COLUMNS, record_values, searched_names
from meshmint_server.store.rows import RecordRow
from meshmint_server.store.url import SqliteUrl

__all__ = ["SqliteWriter"]

# 16 MiB instead of 4: a page that batch after batch changes is copied back once.
_SETTINGS = ("PRAGMA temp_store=MEMORY", "PRAGMA wal_autocheckpoint=4000")
_NAMES = ", ".join(COLUMNS)
_NEW = ", ".join(f"NEW.{name}" for name in COLUMNS)
# In memory, this connection's alone. A row without a serial number fills up a batch.
_BATCH = (
    f"CREATE TEMP VIEW batch ({_NAMES}, searched) AS SELECT {'NULL, ' * len(COLUMNS)}NULL",
    f"""
    CREATE TEMP TRIGGER batch_row INSTEAD OF INSERT ON batch
    WHEN NEW.serial_number IS NOT NULL
    BEGIN
        INSERT INTO records ({_NAMES}) VALUES ({_NEW});
        INSERT INTO record_names (name, created_at, sequence)
        SELECT value, NEW.created_at, last_insert_rowid() FROM json_each(NEW.searched);
    END
    """,  # noqa: S608
)
_WIDTH = len(COLUMNS) + 1
_FILLER = (None,) * _WIDTH


class SqliteWriter:
    """Writes batches on a connection and a thread of its own. Connects when first used.

    Args:
        url: The database's file.
        limits: How long it may take.
    """

    def __init__(self, url: SqliteUrl, limits: TimeLimits) -> None:
        self._uri = sqlite_uri(url)
        self._limits = limits
        self._connection: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store-writer")

    async def write(self, rows: Sequence[RecordRow]) -> None:
        """See `RecordWriter`."""
        values: list[Any] = []
        for row in rows:
            values += record_values(row)
            names = searched_names(row)
            values.append(json.dumps([*names]) if names else None)
        # Sizes are powers of two: few statements, each of which stays prepared.
        size = 1 << (len(rows) - 1).bit_length()
        values += _FILLER * (size - len(rows))
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._write, size, values)
        try:
            async with asyncio.timeout(self._limits.transaction):
                await work
        except (*FAULTS, UnicodeEncodeError, OverflowError) as fault:
            if isinstance(fault, TimeoutError):
                self._interrupt()
            raise refusal(fault) from None

    async def close(self) -> None:
        """Closes the connection, after what is being written."""
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        try:
            async with asyncio.timeout(self._limits.transaction):
                await closing
        except FAULTS as fault:
            unavailable(fault)  # into the log: there is nobody to tell
        self._thread.shutdown(wait=False)

    def _interrupt(self) -> None:
        """Ends what the thread does, so that nobody else waits for its lock."""
        if self._connection is not None:
            with suppress(sqlite3.ProgrammingError):  # closed just now
                self._connection.interrupt()

    def _write(self, size: int, values: Sequence[Any]) -> None:
        if self._connection is None:
            self._connection = self._connect()
        try:
            self._connection.execute(_insertion(size), values)
        except sqlite3.OperationalError:
            self._close()
            raise

    def _connect(self) -> sqlite3.Connection:
        # Without an isolation level a statement is its own transaction.
        connection = sqlite3.connect(
            self._uri,
            uri=True,
            isolation_level=None,
            timeout=self._limits.lock,
            check_same_thread=False,
        )
        try:
            for statement in (*SQLITE_SETTINGS, *_SETTINGS, *_BATCH):
                connection.execute(statement)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _insertion(size: int) -> str:
    row = f"({', '.join('?' * _WIDTH)})"
    return f"INSERT INTO batch VALUES {', '.join([row] * size)}"  # noqa: S608
