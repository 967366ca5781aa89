"""The way to the database: engines, transactions, time limits and what may go wrong.

Everything that touches the database goes through `Database.run`, which is where
a driver's error becomes StoreUnavailable. Details go to the log; no message
shows a statement, a parameter, a host or a password.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import asyncpg
import structlog
from sqlalchemy import Connection, event
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

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
Work = Callable[[AsyncConnection], Awaitable[T]]

_log = structlog.get_logger(__name__)

FAULTS = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
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
_WRITES = "meshmint_writes"
_COMMITTED = "meshmint_committed"
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
        if isinstance(url, SqliteUrl):
            if not as_it_is:
                _prepare_file(url)
            engine = _sqlite_engine(url, limits, pool_size)
        else:
            engine = _postgres_engine(url, limits, pool_size)
        self._engine = engine
        self._writer = engine.execution_options(**{_WRITES: True})

    async def run(self, work: Work[T], *, writes: bool = False) -> T:
        """Runs `work` in one transaction, and commits it.

        When a pooled connection turns out to be dead before the commit was asked
        for, it is run once more on a new one; so `work` touches nothing but the
        connection that it is given.

        Raises:
            RowRefused: A constraint or a type refused what was written.
            InvalidRequest: A type refused what was asked for.
            StoreUnavailable: Anything else went wrong; a commit may or may not have
                happened if the connection broke during it.
        """
        engine = self._writer if writes else self._engine
        try:
            async with asyncio.timeout(self.limits.transaction):
                try:
                    return await _attempt(engine, work)
                except _Stale:
                    return await _attempt(engine, work)
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
        engine = self._writer.execution_options(meshmint_migrates=True)
        try:
            async with asyncio.timeout(self.limits.migration), engine.begin() as connection:
                return await work(connection)
        except FAULTS as fault:
            raise unavailable(fault) from None
        finally:
            # The connection waits longer than others may: it does not go back.
            await self._engine.dispose()

    async def use_write_ahead_log(self) -> None:
        """Turns SQLite's write-ahead log on, which lasts; for PostgreSQL there is none to turn.

        Raises:
            StoreUnavailable: The file stays locked.
        """
        ends = time.monotonic() + self.limits.migration
        while True:
            try:
                async with self._engine.connect() as connection:
                    raw = (await connection.get_raw_connection()).driver_connection
                    assert raw is not None  # noqa: S101
                    async with raw.execute("PRAGMA journal_mode=WAL") as cursor:
                        await cursor.fetchall()
                return
            except FAULTS as fault:
                # SQLite does not wait for this lock by itself.
                if "locked" not in str(fault) or time.monotonic() > ends:
                    raise unavailable(fault) from None
            await asyncio.sleep(0.05)

    async def close(self) -> None:
        """Closes every connection."""
        await self._engine.dispose()


class _Stale(Exception):
    """A connection broke before its commit was asked for; its cause says how."""


async def _attempt(engine: AsyncEngine, work: Work[T]) -> T:
    async with engine.connect() as connection:
        transaction = await connection.begin()
        try:
            result = await work(connection)
        except DBAPIError as fault:
            if fault.connection_invalidated:
                raise _Stale from fault
            raise
        await transaction.commit()
        connection.sync_connection.info[_COMMITTED] = True  # type: ignore[union-attr]
        return result


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


def _sqlite_engine(url: SqliteUrl, limits: TimeLimits, pool_size: int) -> AsyncEngine:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{sqlite_uri(url)}&uri=true",
        connect_args={"isolation_level": None, "timeout": limits.lock},
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=limits.connect,
        pool_reset_on_return=None,  # see `reset`
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "do_connect")
    def refuse_a_missing_file(*_: Any) -> None:
        # Before aiosqlite starts a thread for it: one whose connection fails
        # still answers after the event loop may have ended.
        if not url.path.exists():
            raise sqlite3.OperationalError("unable to open database file")

    @event.listens_for(engine.sync_engine, "connect")
    def prepare(dbapi_connection: Any, record: Any) -> None:
        cursor = dbapi_connection.cursor()
        for setting in SQLITE_SETTINGS:
            cursor.execute(setting)
        cursor.close()
        ends = record.info["statement_ends"] = [float("inf")]
        dbapi_connection.run_async(
            lambda raw: raw.set_progress_handler(
                lambda: time.monotonic() > ends[0],
                _SQLITE_STEPS,
            )
        )

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("meshmint_migrates"):
            milliseconds = int(limits.migration * 1000)
            connection.exec_driver_sql(f"PRAGMA busy_timeout={milliseconds}")
        # A deferred transaction that turns into a writer fails instead of waiting.
        statement = "BEGIN IMMEDIATE" if options.get(_WRITES) else "BEGIN"
        # Each step on a cursor is a way to the connection's thread and back; this is one.
        dbapi_connection: Any = connection.connection.dbapi_connection
        dbapi_connection.run_async(lambda raw: raw.execute_fetchall(statement))

    @event.listens_for(engine.sync_engine, "reset")
    def reset(dbapi_connection: Any, record: Any, _state: Any) -> None:
        # What the pool does by itself, but not behind a commit. Whether a transaction is open
        # cannot be asked: its BEGIN may still be on the way, of someone who was cancelled.
        if not record.info.pop(_COMMITTED, False):
            dbapi_connection.rollback()

    @event.listens_for(engine.sync_engine, "before_cursor_execute")
    def start_clock(connection: Connection, *_: Any) -> None:
        migrates = connection.get_execution_options().get("meshmint_migrates")
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
