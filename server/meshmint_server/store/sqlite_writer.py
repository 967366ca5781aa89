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
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from meshmint_server.errors import StoreUnavailable
from meshmint_server.store.database import (
    FAULTS,
    SQLITE_SETTINGS,
    RowRefused,
    TimeLimits,
    refusal,
    sqlite_uri,
    unavailable,
)
from meshmint_server.store.record_values import COLUMNS, record_values, reply_values, searched_names
from meshmint_server.store.rows import RecordRow
from meshmint_server.store.url import SqliteUrl

__all__ = ["SqliteWriter"]

# 16 MiB instead of 4: a page that batch after batch changes is copied back once.
_SETTINGS = ("PRAGMA temp_store=MEMORY", "PRAGMA wal_autocheckpoint=4000")
_NAMES = ", ".join(COLUMNS)
_NEW = ", ".join(f"NEW.{name}" for name in COLUMNS)
# In memory, this connection's alone. A row without a serial number fills up a batch.
_BATCH = (
    f"CREATE TEMP VIEW batch ({_NAMES}, searched, tag, sealed, expires_at) "
    f"AS SELECT {'NULL, ' * len(COLUMNS)}NULL, NULL, NULL, NULL",
    f"""
    CREATE TEMP TRIGGER batch_row INSTEAD OF INSERT ON batch
    WHEN NEW.serial_number IS NOT NULL
    BEGIN
        INSERT INTO replies (tag, serial_number, sealed, expires_at)
        SELECT NEW.tag, NEW.serial_number, NEW.sealed, NEW.expires_at
        WHERE NEW.tag IS NOT NULL ON CONFLICT (tag) DO NOTHING;
        INSERT INTO records ({_NAMES}) SELECT {_NEW} WHERE NEW.tag IS NULL OR changes() = 1;
        INSERT INTO record_names (name, created_at, sequence)
        SELECT value, NEW.created_at, last_insert_rowid()
        FROM json_each(NEW.searched) WHERE changes() = 1;
    END
    """,  # noqa: S608
)
_LOST = """
SELECT value FROM json_each(?) AS given
WHERE NOT EXISTS (SELECT 1 FROM records WHERE serial_number = given.value)
"""
_WIDTH = len(COLUMNS) + 4
_NO_REPLY = (None, None, None)
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
        self._thread = _thread()

    async def write(self, rows: Sequence[RecordRow]) -> Collection[str]:
        """See `RecordWriter`."""
        values: list[Any] = []
        replying: list[str] = []
        for row in rows:
            values += record_values(row)
            names = searched_names(row)
            values.append(json.dumps([*names]) if names else None)
            if row.reply is None:
                values += _NO_REPLY
            else:
                replying.append(row.serial_number)
                values += reply_values(row.reply)
        size = _statement_size(len(rows))
        values += _FILLER * (size - len(rows))
        return await self._run(partial(self._write, size, values, replying))

    async def taken(self, tags: Sequence[bytes]) -> Collection[bytes]:
        """See `RecordWriter`."""
        size = _statement_size(len(tags))
        statement = f"SELECT tag FROM replies WHERE tag IN ({_marks(size)})"  # noqa: S608
        filled = [*tags, *([None] * (size - len(tags)))]
        try:
            return await self._run(partial(self._fetch, statement, filled))
        except RowRefused:
            raise StoreUnavailable("The store does not answer at present.") from None

    async def _run(self, work: Callable[[], list[Any]]) -> list[Any]:
        """Runs `work` on the thread, with its errors translated."""
        task = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            async with asyncio.timeout(self._limits.transaction):
                return await task
        except (*FAULTS, UnicodeEncodeError, OverflowError) as fault:
            if isinstance(fault, TimeoutError):
                self._interrupt()
            raise refusal(fault) from None

    async def close(self) -> None:
        """Closes the connection, after what is being written. Used again, it is opened again."""
        thread, self._thread = self._thread, _thread()
        closing = asyncio.get_running_loop().run_in_executor(thread, self._close)
        try:
            async with asyncio.timeout(self._limits.transaction):
                await closing
        except FAULTS as fault:
            unavailable(fault)  # into the log: there is nobody to tell
        thread.shutdown(wait=False)

    def _interrupt(self) -> None:
        """Ends what the thread does, so that nobody else waits for its lock."""
        if self._connection is not None:
            with suppress(sqlite3.ProgrammingError):  # closed just now
                self._connection.interrupt()

    def _write(self, size: int, values: Sequence[Any], replying: Sequence[str]) -> list[Any]:
        """Writes a batch; the serial numbers that another reply was before."""
        self._fetch(_insertion(size), values)
        return self._fetch(_LOST, (json.dumps(replying),)) if replying else []

    def _fetch(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """The first column of what a statement returns."""
        if self._connection is None:
            self._connection = self._connect()
        try:
            return [row[0] for row in self._connection.execute(statement, values)]
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


def _thread() -> ThreadPoolExecutor:
    """One thread, which starts when it is first used."""
    return ThreadPoolExecutor(1, thread_name_prefix="store-writer")


def _insertion(size: int) -> str:
    return f"INSERT INTO batch VALUES {', '.join([f'({_marks(_WIDTH)})'] * size)}"  # noqa: S608


def _statement_size(count: int) -> int:
    """At least so many. A power of two: few statements, each of which stays prepared."""
    return 1 << (count - 1).bit_length()


def _marks(count: int) -> str:
    return ", ".join("?" * count)
