"""One of all workers and replicas at a time: an advisory lock that dies with its holder.

In PostgreSQL a session's advisory lock, on a connection of its own; beside SQLite,
which serves one machine, a lock on a file. Neither outlives its process, so nobody
waits for a lease to run out. Being the leader saves work and avoids noise; what must
never happen twice is guarded in the database as well.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Protocol

import asyncpg
import structlog

from meshmint_server.store.url import PostgresUrl, SqliteUrl

__all__ = ["Leadership", "leadership_at"]

_log = structlog.get_logger(__name__)


class Leadership(Protocol):
    """A claim on the leadership in one matter."""

    async def hold(self) -> bool:
        """Takes it if it is free, and tells whether we have it; never waits, never raises."""

    async def release(self) -> None:
        """Gives it back, if we have it."""


def leadership_at(url: SqliteUrl | PostgresUrl, matter: str, *, time_limit: float) -> Leadership:
    """A claim on the leadership of those who share a database.

    Args:
        url: The database.
        matter: What the leader does, such as ``upkeep``.
        time_limit: Seconds that the database may take.
    """
    if isinstance(url, SqliteUrl):
        return _FileLock(url.path.with_name(f"{url.path.name}.{matter}.lock"))
    return _SessionLock(url, matter, time_limit)


class _FileLock:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    async def hold(self) -> bool:
        if self._descriptor is not None:
            return True
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            _log.warning("store.leadership_unknown", error=type(fault).__name__)
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    async def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class _SessionLock:
    def __init__(self, url: PostgresUrl, matter: str, time_limit: float) -> None:
        self._url = url
        self._time_limit = time_limit
        digest = hashlib.sha256(b"meshmint leadership " + matter.encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)
        self._connection: asyncpg.Connection | None = None
        self._is_held = False

    async def hold(self) -> bool:
        try:
            async with asyncio.timeout(self._time_limit):
                if self._connection is None:
                    self._is_held = False
                    self._connection = await connect(self._url, self._time_limit)
                if self._is_held:
                    # The lock is the session's: it is ours for as long as this answers.
                    await self._connection.execute("SELECT 1")
                else:
                    self._is_held = await self._connection.fetchval(
                        "SELECT pg_try_advisory_lock($1)", self._key
                    )
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as fault:
            _log.warning("store.leadership_unknown", error=type(fault).__name__)
            await self.release()
        return self._is_held

    async def release(self) -> None:
        connection, self._connection, self._is_held = self._connection, None, False
        if connection is not None:
            connection.terminate()


async def connect(url: PostgresUrl, time_limit: float) -> asyncpg.Connection:
    """A connection of its own, outside every pool.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: There is none.
    """
    password: dict[str, str] = {}
    if url.password_file is not None:
        content = await asyncio.to_thread(url.password_file.read_text, "utf-8")
        password["password"] = content.rstrip("\r\n")
    milliseconds = str(int(time_limit * 1000))
    return await asyncpg.connect(
        url.dsn,
        timeout=time_limit,
        server_settings={"application_name": "meshmint", "statement_timeout": milliseconds},
        **password,
    )
