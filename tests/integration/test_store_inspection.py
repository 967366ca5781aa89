"""A database can be looked at without being changed, in SQLite and PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from meshmint_server.errors import StoreUnavailable
from meshmint_server.store import RoleRow, SchemaState, Store
from sqlalchemy import Connection, text


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    store = Store.open(store_url)
    yield store
    await store.close()


async def set_schema(store: Store, revision: str) -> None:
    def work(connection: Connection) -> None:
        connection.execute(
            text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision}
        )

    await store.database.run(work, writes=True)


async def test_the_schema_is_absent_then_current_then_newer(store: Store) -> None:
    assert await store.schema_state() is SchemaState.ABSENT
    await store.migrate()
    assert await store.schema_state() is SchemaState.CURRENT
    await set_schema(store, "9999")
    assert await store.schema_state() is SchemaState.NEWER


async def test_trying_to_write_leaves_nothing_behind(store: Store) -> None:
    await store.migrate()
    await store.put_role(RoleRow("web", "{}"))
    before = await store.load_roles()

    await store.try_writing()

    assert await store.load_roles() == before


async def test_a_commit_that_proves_writing_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(StoreUnavailable):
        await store.prove_writing()
    await store.migrate()

    def count(connection: Connection) -> object:
        return connection.execute(text("SELECT count(*) FROM duties")).scalar_one()

    before = await store.database.run(count)
    await store.prove_writing()
    assert await store.database.run(count) == before


async def test_the_clock_is_the_databases_where_it_has_one(store: Store) -> None:
    clock = await store.clock()

    assert store.database.is_sqlite or clock is not None
    assert clock is None or abs(clock - datetime.now(UTC)) < timedelta(seconds=30)


async def test_a_look_makes_no_file_and_changes_no_mode(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    url = f"sqlite:///{file}"
    absent = Store.open(url, as_it_is=True)
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await absent.schema_state()
    finally:
        await absent.close()
    assert not file.exists()
    assert any("unable to open" in note for note in caught.value.__notes__)

    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE other (x)")
    file.chmod(0o644)
    present = Store.open(url, as_it_is=True)
    try:
        assert await present.schema_state() is SchemaState.ABSENT
    finally:
        await present.close()
    assert file.stat().st_mode & 0o777 == 0o644


async def test_a_database_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    store = Store.open(f"sqlite:///{file}")
    await store.migrate()
    await store.close()
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "CREATE TRIGGER no_writes BEFORE UPDATE ON revisions "
            "BEGIN SELECT RAISE(ABORT, 'no writes today'); END"
        )
    store = Store.open(f"sqlite:///{file}", as_it_is=True)
    try:
        with pytest.raises(StoreUnavailable):
            await store.try_writing()
    finally:
        await store.close()
