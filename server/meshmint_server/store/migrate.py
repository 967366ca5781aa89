"""Brings the schema up to date, however many processes start at once.

Migrations only ever add: the release before must be able to go on with the
schema of the release after, because replicas are replaced one by one.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import structlog
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from meshmint_server.store.database import Database

__all__ = ["SchemaState", "migrate", "schema_state"]

_log = structlog.get_logger(__name__)

# Any constant will do that nobody else uses: "meshmint" in ASCII.
_LOCK = int.from_bytes(b"meshmint", "big", signed=True)


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
    scripts = ScriptDirectory.from_config(_alembic())
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None:
        return SchemaState.ABSENT
    if current == scripts.get_current_head():
        return SchemaState.CURRENT
    known = {script.revision for script in scripts.walk_revisions()}
    return SchemaState.OLDER if current in known else SchemaState.NEWER


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

    def work(connection: Connection) -> None:
        # SQLite needs no lock of its own: the transaction began as a writing one.
        if not database.is_sqlite:
            limit = f"{int(database.limits.migration * 1000)}"
            for setting in ("lock_timeout", "statement_timeout"):
                connection.execute(text(f"SET LOCAL {setting} = {limit}"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        _upgrade(connection)

    await database.run_migration(work)


def _alembic() -> Config:
    config = Config()
    # A "%" in a path would be read as an interpolation.
    location = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", location)
    return config


def _upgrade(connection: Connection) -> None:
    config = _alembic()
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is not None and current not in known:
        _log.warning("store.schema_is_newer", schema=current)
        return
    command.upgrade(config, "head")
