"""Looks at a database without changing it: for `meshmintd doctor`."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from meshmint_server.errors import StoreUnavailable
from meshmint_server.store.database import Database, RowRefused
from meshmint_server.store.schema import revisions

__all__ = ["read_clock", "try_writing"]


class _RolledBack(Exception):
    """Ends a transaction that has shown what it should."""


async def try_writing(database: Database) -> None:
    """Writes a row as it stands, and rolls back.

    Raises:
        StoreUnavailable: The database cannot be written.
    """

    async def work(connection: AsyncConnection) -> None:
        await connection.execute(
            update(revisions).where(revisions.c.kind == "roles").values(value=revisions.c.value)
        )
        raise _RolledBack

    try:
        await database.run(work, writes=True)
    except _RolledBack:
        return
    except RowRefused:
        raise StoreUnavailable("The database refuses to be written.") from None


async def read_clock(database: Database) -> datetime | None:
    """The time at the server; None if there is none.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    if database.is_sqlite:
        return None

    async def work(connection: AsyncConnection) -> datetime:
        result = await connection.execute(text("SELECT clock_timestamp()"))
        moment: datetime = result.scalar_one()
        return moment

    return await database.run(work)
