"""Brings the schema up to date, however many processes start at once.

Migrations only ever add: the release before must be able to go on with the
schema of the release after, because replicas are replaced one by one.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import structlog
from sqlalchemy import Connection, inspect, text

from meshmint_server.store.database import Database

__all__ = ["SchemaState", "migrate", "revisions", "schema_state"]

_log = structlog.get_logger(__name__)

# Any constant will do that nobody else uses: "meshmint" in ASCII.
_LOCK = int.from_bytes(b"meshmint", "big", signed=True)
_MIGRATIONS = Path(__file__).parent / "migrations" / "versions"
_MIGRATION = re.compile(r"v(\d{4})_\w+\.py")


class SchemaState(StrEnum):
    """How a database's schema stands to the one that this release knows."""

    ABSENT = "absent"
    OLDER = "older"
    CURRENT = "current"
    NEWER = "newer"


async def schema_state(database: Database) -> SchemaState:
    """Compares the schema with ours; changes nothing.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    return await database.run(_compare)


def _compare(connection: Connection) -> SchemaState:
    known = revisions()
    if not inspect(connection).has_table("alembic_version"):
        return SchemaState.ABSENT
    current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if current is None:
        return SchemaState.ABSENT
    if current == known[-1]:
        return SchemaState.CURRENT
    return SchemaState.OLDER if current in known else SchemaState.NEWER


def revisions() -> list[str]:
    """The revisions that this release knows, in their order: files are named by them."""
    found = (_MIGRATION.fullmatch(path.name) for path in _MIGRATIONS.iterdir())
    return sorted(match[1] for match in found if match)


async def migrate(database: Database) -> None:
    """Runs the migrations that are missing, under a lock that other processes heed.

    Raises:
        StoreUnavailable: The database does not answer, or refuses.
    """
    if database.is_sqlite:
        await database.use_write_ahead_log()
    # A look needs no lock, and a worker that starts must not stop those that record:
    # of SQLite's writers there is one at a time.
    if await schema_state(database) is SchemaState.CURRENT:
        return

    # Alembic takes a fifth of a start, and nearly no start has anything for it to do.
    from meshmint_server.store.upgrade import upgrade  # noqa: PLC0415

    def work(connection: Connection) -> None:
        # SQLite needs no lock of its own: the transaction began as a writing one.
        if not database.is_sqlite:
            limit = f"{int(database.limits.migration * 1000)}"
            for setting in ("lock_timeout", "statement_timeout"):
                connection.execute(text(f"SET LOCAL {setting} = {limit}"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        if (state := _compare(connection)) is SchemaState.NEWER:
            _log.warning("store.schema_is_newer")
        elif state is not SchemaState.CURRENT:
            upgrade(connection)

    await database.run_migration(work)
