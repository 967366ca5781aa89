"""The way to the database: engines, transactions, time limits and what may go wrong.

Everything that touches the database goes through `Database.run`, which is where
a driver's error becomes StoreUnavailable. Details go to the log; no message
shows a statement, a parameter, a host or a password.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg
import structlog
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from meshmint_server.errors import InvalidRequest, StoreUnavailable
from meshmint_server.store.url import PostgresUrl, SqliteUrl

__all__ = [
    "FAULTS",
    "SQLITE_SETTINGS",
    "Database",
    "RowRefused",
    "TimeLimits",
    "connect_postgres",
    "refusal",
    "sqlite_uri",
    "unavailable",
]

T = TypeVar("T")
Work = Callable[[Connection], T]

_log = structlog.get_logger(__name__)

FAULTS = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # it lost track of a connection
    sqlite3.Error,
    OSError,  # refused, reset, no such socket; TimeoutError is one too
)
# SQLAlchemy's, SQLite's own, and of values that SQLite's driver cannot even send.
_ABOUT_A_VALUE = (
    IntegrityError,
    DataError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    UnicodeEncodeError,
    OverflowError,
)
# Of every connection: synchronous=FULL has each commit of the write-ahead log synced.
SQLITE_SETTINGS = (
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA trusted_schema=OFF",
)
# How often SQLite asks whether the statement's time is over, in its own steps.
_SQLITE_STEPS = 20_000


class RowRefused(Exception):
    """The database took none of the rows of a transaction because of what one holds."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long the database may take, in seconds.

    Attributes:
        connect: To open a connection, or to wait for one of the pool.
        lock: To wait for another writer.
        statement: To run one statement.
        migration: To wait for another process's migration, and to run one.
    """

    connect: float = 5.0
    lock: float = 5.0
    statement: float = 10.0
    migration: float = 300.0

    @property
    def transaction(self) -> float:
        """To do one transaction whole, connecting included."""
        return self.connect + self.lock + self.statement


class Database:
    """One database, SQLite or PostgreSQL, behind the same two methods.

    An object belongs to the event loop that uses it first.
    """

    def __init__(
        self,
        url: SqliteUrl | PostgresUrl,
        limits: TimeLimits,
        *,
        pool_size: int = 5,
        as_it_is: bool = False,
    ) -> None:
        self.limits = limits
        self.is_sqlite = isinstance(url, SqliteUrl)
        self._way: _Sqlite | _Postgres
        if isinstance(url, SqliteUrl):
            if not as_it_is:
                _prepare_file(url)
            self._way = _Sqlite(url, limits, pool_size)
        else:
            self._way = _Postgres(url, limits, pool_size)

    async def run(self, work: Work[T], *, writes: bool = False) -> T:
        """Runs `work` in one transaction, and commits it; in PostgreSQL only where it writes.

        When a pooled connection turns out to be dead before the commit was asked
        for, it is run once more on a new one. `work` touches nothing but the
        connection that it is given: it is called in another thread or greenlet.

        Raises:
            RowRefused: A constraint or a type refused what was written.
            InvalidRequest: A type refused what was asked for.
            StoreUnavailable: Anything else went wrong; a commit may or may not have
                happened if the connection broke during it.
        """
        transaction = partial(_transact, work)
        try:
            async with asyncio.timeout(self.limits.transaction):
                try:
                    return await self._way.connected(transaction, writes=writes)
                except _Stale:
                    return await self._way.connected(transaction, writes=writes)
        except _Stale as fault:
            raise unavailable(fault.__cause__ or fault) from None
        except FAULTS as fault:
            error = refusal(fault)
            if writes or not isinstance(error, RowRefused):
                raise error from None
            raise InvalidRequest(
                "There can be no such value: leave control characters out."
            ) from None

    async def run_migration(self, work: Work[T]) -> T:
        """Runs `work` in one writing transaction with the time that a migration may take.

        Raises:
            StoreUnavailable: The database does not answer, or refuses.
        """
        transaction = partial(_transact, work)
        try:
            async with asyncio.timeout(self.limits.migration):
                return await self._way.connected(transaction, writes=True, migrates=True)
        except _Stale as fault:
            raise unavailable(fault.__cause__ or fault) from None
        except FAULTS as fault:
            raise unavailable(fault) from None
        finally:
            # The connection waits longer than others may: it does not go back.
            await self._way.close()

    async def use_write_ahead_log(self) -> None:
        """Turns SQLite's write-ahead log on, which lasts; for PostgreSQL there is none to turn.

        Raises:
            StoreUnavailable: The file stays locked.
        """
        ends = time.monotonic() + self.limits.migration
        while True:
            try:
                await self._way.connected(_use_write_ahead_log)
                return
            except FAULTS as fault:
                # SQLite does not wait for this lock by itself.
                if "locked" not in str(fault) or time.monotonic() > ends:
                    raise unavailable(fault) from None
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Closes every connection. Used again, it opens others."""
        await self._way.close()


class _Stale(Exception):
    """A connection broke before its commit was asked for; its cause says how."""


class _Abandoned(Exception):
    """Nobody waits for the transaction any more; nobody is told."""


def _transact(work: Work[T], connection: Connection) -> T:
    transaction = connection.begin()
    try:
        result = work(connection)
    except DBAPIError as fault:
        if fault.connection_invalidated:
            raise _Stale from fault
        raise
    transaction.commit()
    return result


def _use_write_ahead_log(connection: Connection) -> None:
    # Not in a transaction, where it cannot be changed.
    raw: Any = connection.connection.dbapi_connection
    raw.execute("PRAGMA journal_mode=WAL").fetchall()


def refusal(fault: BaseException) -> RowRefused | StoreUnavailable:
    """Logs what a writer met and returns what it means: one of its rows, or the database."""
    if not _is_about_a_value(fault):
        return unavailable(fault)
    _log.warning("store.row_refused", **_details(fault))
    return RowRefused()


def _is_about_a_value(fault: BaseException) -> bool:
    """Whether the database is well and only dislikes what it was given."""
    if isinstance(fault, _ABOUT_A_VALUE):
        return True
    # PostgreSQL's data exceptions (class 22: a NUL in text, a number out of range; 23: a
    # constraint; 54000: a text that no index holds) have no class of their own in SQLAlchemy.
    state = getattr(getattr(fault, "orig", None) or fault, "sqlstate", None)
    return isinstance(state, str) and (state[:2] in ("22", "23") or state == "54000")


def unavailable(fault: BaseException) -> StoreUnavailable:
    """Logs what happened and returns what a caller may know of it.

    What the log says stands in the error's notes too, for who looks into it by hand.
    """
    details = _details(fault)
    _log.error("store.unavailable", **details)
    error = StoreUnavailable("The store does not answer at present. Try again shortly.")
    error.add_note(": ".join(details.values()))
    return error


def _details(fault: BaseException) -> dict[str, str]:
    original = getattr(fault, "orig", None)
    details = {"error": type(original or fault).__name__}
    state = getattr(original or fault, "sqlstate", None)
    if state:
        details["sqlstate"] = state
    if isinstance(original or fault, sqlite3.Error | OSError):
        # SQLite's and the system's messages name tables and errors, never values.
        details["detail"] = str(original or fault)
    return details


def _prepare_file(url: SqliteUrl) -> None:
    # SQLite gives its WAL and shared-memory files the mode of the database file.
    try:
        descriptor = os.open(url.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_mode & 0o077:
                os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as fault:
        raise StoreUnavailable(
            f"The store's file {url.path} cannot be opened: {fault.strerror}."
        ) from None


def sqlite_uri(url: SqliteUrl) -> str:
    """The file as SQLite is to open it."""
    # mode=rw: a file that is gone must not come back empty, with another mode.
    return f"file:{quote(str(url.path))}?mode=rw"


class _Sqlite:
    """Connections in threads: a transaction is one way there and back, however much it does.

    That of a caller who has gone meanwhile goes on, within its time limits, but is not
    committed.
    """

    def __init__(self, url: SqliteUrl, limits: TimeLimits, pool_size: int) -> None:
        self._engine = _sqlite_engine(url, limits, pool_size)
        self._writer = self._engine.execution_options(writes=True)
        self._migrator = self._engine.execution_options(writes=True, migrates=True)
        self._pool_size = pool_size
        self._threads = self._start_threads()

    def _start_threads(self) -> ThreadPoolExecutor:
        """As many as there are connections. They start when they are first used."""
        return ThreadPoolExecutor(self._pool_size, thread_name_prefix="store")

    async def connected(self, call: Work[T], *, writes: bool = False, migrates: bool = False) -> T:
        engine = self._migrator if migrates else self._writer if writes else self._engine
        is_abandoned = threading.Event()

        def run() -> T:
            with engine.connect() as connection:
                connection.info["is_abandoned"] = is_abandoned
                return call(connection)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except asyncio.CancelledError:
            is_abandoned.set()
            raise

    async def close(self) -> None:
        self._threads.shutdown(wait=False)
        self._threads = self._start_threads()
        await asyncio.to_thread(self._engine.dispose)


class _Postgres:
    """Connections of the event loop."""

    def __init__(self, url: PostgresUrl, limits: TimeLimits, pool_size: int) -> None:
        self._engine = _postgres_engine(url, limits, pool_size)
        # Each statement sees what was committed before it, in a transaction or not (READ
        # COMMITTED): who only reads is spared the ways for BEGIN and COMMIT.
        self._reader = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    async def connected(self, call: Work[T], *, writes: bool = False, **_: bool) -> T:
        engine = self._engine if writes else self._reader
        async with engine.connect() as connection:
            return await connection.run_sync(call)

    async def close(self) -> None:
        await self._engine.dispose()


def _sqlite_engine(url: SqliteUrl, limits: TimeLimits, pool_size: int) -> Engine:
    engine = create_engine(
        f"sqlite:///{sqlite_uri(url)}&uri=true",
        connect_args={
            "isolation_level": None,
            "timeout": limits.lock,
            "check_same_thread": False,
        },
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=limits.connect,
        pool_reset_on_return=None,  # see `reset`
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def prepare(dbapi_connection: Any, record: Any) -> None:
        for setting in SQLITE_SETTINGS:
            dbapi_connection.execute(setting)
        ends = record.info["statement_ends"] = [float("inf")]
        dbapi_connection.set_progress_handler(lambda: time.monotonic() > ends[0], _SQLITE_STEPS)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        raw: Any = connection.connection.dbapi_connection
        if options.get("migrates"):
            raw.execute(f"PRAGMA busy_timeout={int(limits.migration * 1000)}")
        # A deferred transaction that turns into a writer fails instead of waiting.
        raw.execute("BEGIN IMMEDIATE" if options.get("writes") else "BEGIN")

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        if connection.info["is_abandoned"].is_set():
            raise _Abandoned

    @event.listens_for(engine, "reset")
    def reset(dbapi_connection: Any, *_: Any) -> None:
        # The pool leaves out what it takes for ended, a commit that failed among it.
        if dbapi_connection.in_transaction:
            dbapi_connection.rollback()

    @event.listens_for(engine, "before_cursor_execute")
    def start_clock(connection: Connection, *_: Any) -> None:
        migrates = connection.get_execution_options().get("migrates")
        limit = limits.migration if migrates else limits.statement
        connection.info["statement_ends"][0] = time.monotonic() + limit

    return engine


async def connect_postgres(url: PostgresUrl, limits: TimeLimits) -> asyncpg.Connection:
    """A connection with our time limits.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: There is none.
    """
    password: dict[str, str] = {}
    if url.password_file is not None:
        text = await asyncio.to_thread(url.password_file.read_text, "utf-8")
        password["password"] = text.rstrip("\r\n")
    return await asyncpg.connect(
        url.dsn,
        timeout=limits.connect,
        server_settings={
            "application_name": "meshmint",
            "lock_timeout": str(int(limits.lock * 1000)),
            "statement_timeout": str(int(limits.statement * 1000)),
            "idle_in_transaction_session_timeout": str(int(limits.transaction * 1000)),
        },
        **password,
    )


def _postgres_engine(url: PostgresUrl, limits: TimeLimits, pool_size: int) -> AsyncEngine:
    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: connect_postgres(url, limits),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=limits.connect,
        pool_recycle=1800,
        hide_parameters=True,
    )
