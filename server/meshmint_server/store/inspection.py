"""Looks at a database and leaves it as it was: for `meshmintd doctor` and for readiness."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, insert, text, update

from meshmint_server.errors import StoreUnavailable
from meshmint_server.store.database import Database, RowRefused
from meshmint_server.store.schema import duties, revisions

__all__ = ["prove_writing", "read_clock", "try_writing"]


class _RolledBack(Exception):
    """Ends a transaction that has shown what it should."""


async def try_writing(database: Database) -> None:
    """Writes a row as it stands, and rolls back.

    Raises:
        StoreUnavailable: The database cannot be written.
    """

    def work(connection: Connection) -> None:
        connection.execute(
            update(revisions).where(revisions.c.kind == "roles").values(value=revisions.c.value)
        )
        raise _RolledBack

    try:
        await database.run(work, writes=True)
    except _RolledBack:
        return
    except RowRefused:
        raise StoreUnavailable("The database refuses to be written.") from None


async def prove_writing(database: Database) -> None:
    """Commits a transaction that wrote something: only a commit finds a full disk.

    Raises:
        StoreUnavailable: The database cannot be written.
    """
    # A row that comes and goes: SQLite leaves out to write one that stays as it is. Its name
    # is nobody else's, so that probes do not wait for each other.
    name = f"probe {secrets.token_hex(8)}"

    def work(connection: Connection) -> None:
        connection.execute(insert(duties).values(name=name, done_at=datetime.now(UTC)))
        connection.execute(delete(duties).where(duties.c.name == name))

    try:
        await database.run(work, writes=True)
    except RowRefused:
        raise StoreUnavailable("The database refuses to be written.") from None


async def read_clock(database: Database) -> datetime | None:
    """The time at the server; None if there is none.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    if database.is_sqlite:
        return None

    def work(connection: Connection) -> datetime:
        result = connection.execute(text("SELECT clock_timestamp()"))
        moment: datetime = result.scalar_one()
        return moment

    return await database.run(work)
