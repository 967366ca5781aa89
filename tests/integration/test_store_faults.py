"""What the store does when the database is away, locked, slow, empty or from the future."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from meshmint_server.errors import StoreUnavailable
from meshmint_server.store import RecordFilter, RoleRow, Store, TimeLimits
from meshmint_server.store.database import Database, RowRefused
from meshmint_server.store.schema import metadata
from meshmint_server.store.sqlite_writer import SqliteWriter
from meshmint_server.store.url import PostgresUrl, SqliteUrl, parse_store_url
from sqlalchemy import Connection, text
from support.cutting_server import CuttingServer, Loses
from support.postgres import PORT, PostgresServer
from support.rows import record_row


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may stop."""
    server = PostgresServer()
    yield server
    server.remove()


async def test_postgresql_that_stops_is_unavailable_and_comes_back(own_server: PostgresServer):
    name = await own_server.create_database()
    store = Store.open(own_server.url(name))
    await store.migrate()
    before = record_row()
    await store.record(before)
    await store.put_role(RoleRow("web", "{}"))

    own_server.stop()
    for attempt in (
        store.record(record_row()),
        store.get_record(before.serial_number),
        store.list_records(RecordFilter()),
        store.put_role(RoleRow("db", "{}")),
        store.ping(),
    ):
        with pytest.raises(StoreUnavailable) as fault:
            await attempt
        assert fault.value.retry_after
        assert str(own_server.directory) not in fault.value.message

    own_server.start()
    after = record_row()
    await store.record(after)
    assert await store.get_record(before.serial_number) == before
    assert await store.get_record(after.serial_number) == after
    await store.close()


async def test_a_restart_while_idle_is_not_noticed(own_server: PostgresServer):
    name = await own_server.create_database()
    store = Store.open(own_server.url(name))
    await store.migrate()
    await store.record(record_row())
    await store.ping()
    own_server.stop()
    own_server.start()
    await store.record(record_row())
    await store.ping()
    assert len((await store.list_records(RecordFilter())).items) == 2
    await store.close()


@pytest.mark.parametrize("times", [1, 10])
async def test_a_connection_that_the_driver_lost_track_of_is_not_used_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, times: int
):
    """asyncpg says so where a server ends a session at the wrong moment."""
    store = Store.open(postgres_url)
    await store.migrate()
    row = record_row()
    await store.record(row)
    fetch, met = asyncpg.Connection.fetch, set()

    async def lose_track(connection: asyncpg.Connection, *arguments: object) -> list[object]:
        if len(met) < times:
            assert connection not in met
            met.add(connection)
            raise asyncpg.InternalClientError("another operation (2) is in progress")
        return await fetch(connection, *arguments)

    monkeypatch.setattr(asyncpg.Connection, "fetch", lose_track)
    for attempt in (store.find_reply(b"tag", row.created_at), store.record(record_row())):
        if times == 1:
            await attempt
        else:
            with pytest.raises(StoreUnavailable):
                await attempt
    monkeypatch.undo()
    await store.record(record_row())
    await store.close()


@pytest.fixture
async def cutting_server(postgres_server: PostgresServer) -> AsyncIterator[CuttingServer]:
    """The way to a server that loses its answers when it is told to."""
    server = CuttingServer(f"{postgres_server.directory}/.s.PGSQL.{PORT}")
    await server.start()
    yield server
    await server.stop()


@pytest.mark.parametrize("loses", ["question", "answer"])
async def test_a_connection_that_breaks_in_the_middle_of_a_commit_leaves_one_record(
    postgres_url: str, cutting_server: CuttingServer, loses: Loses
):
    store = Store.open(postgres_url)
    await store.migrate()
    through = Store.open(cutting_server.reroute(postgres_url))
    before, *rows = (record_row() for _ in range(6))
    await through.record(before)
    cutting_server.loses = loses
    await asyncio.gather(*map(through.record, rows))
    assert cutting_server.lost == 1
    kept = (await store.list_records(RecordFilter())).items
    assert {row.serial_number for row in kept} == {row.serial_number for row in (before, *rows)}
    assert len(kept) == 6

    # One of another certificate with the same serial number is still refused.
    cutting_server.loses = loses
    with pytest.raises(StoreUnavailable) as refusal:
        await through.record(replace(record_row(), serial_number=before.serial_number))
    assert refusal.value.reason == "RECORD_REFUSED"
    assert await store.get_record(before.serial_number) == before
    await through.close()
    await store.close()


async def test_a_stop_under_load_loses_nothing_that_was_promised(own_server: PostgresServer):
    name = await own_server.create_database()
    store = Store.open(own_server.url(name))
    await store.migrate()
    promised: list[str] = []
    refused: list[StoreUnavailable] = []
    is_over = False

    async def call() -> None:
        while not is_over:
            row = record_row()
            try:
                await store.record(row)
            except StoreUnavailable as fault:
                refused.append(fault)
                await asyncio.sleep(0.02)
            else:
                promised.append(row.serial_number)

    callers = [asyncio.create_task(call()) for _ in range(20)]
    await asyncio.sleep(0.3)
    # An orderly stop: with fsync off a crash may lose what a real server would keep.
    await asyncio.to_thread(own_server.stop, signal.SIGINT)
    await asyncio.sleep(0.2)
    await asyncio.to_thread(own_server.start)
    count = len(promised)
    while len(promised) < count + 50:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    is_over = True
    await asyncio.gather(*callers)
    assert refused
    for serial_number in promised:
        assert await store.get_record(serial_number) is not None
    await store.close()


async def test_a_password_is_not_repeated(
    postgres_url: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    store = Store.open(postgres_url.replace("meshmint@", "nobody-here:hunter2@"))
    with pytest.raises(StoreUnavailable) as fault:
        await store.ping()
    await store.close()
    assert "hunter2" not in f"{fault.value!r} {caplog.text} {capsys.readouterr()}"
    assert fault.value.__cause__ is None


async def test_the_password_file_is_read_for_every_connection(postgres_url: str, tmp_path: Path):
    secret = tmp_path / "password"
    store = Store.open(f"{postgres_url}&password_file={secret}")
    with pytest.raises(StoreUnavailable):
        await store.ping()
    secret.write_text("any will do where the server trusts\n")
    await store.migrate()
    await store.ping()
    await store.close()


async def test_a_locked_sqlite_file_is_unavailable_to_writers_alone(tmp_path: Path):
    path = tmp_path / "store.db"
    store = Store.open(f"sqlite:///{path}", limits=TimeLimits(lock=0.2))
    await store.migrate()
    row = record_row()
    await store.record(row)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable):
        await store.record(record_row())
    assert await store.get_record(row.serial_number) == row
    holder.execute("ROLLBACK")
    holder.close()
    await store.record(record_row())
    await store.close()


async def test_a_transaction_that_cannot_be_committed_leaves_nothing_to_the_next(tmp_path: Path):
    # SQLite keeps a transaction open whose commit was refused, and the pool has one connection.
    database = Database(parse_store_url(f"sqlite:///{tmp_path}/a.db"), TimeLimits(), pool_size=1)

    def prepare(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE above (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE TABLE below (id INTEGER REFERENCES above DEFERRABLE INITIALLY DEFERRED)"
        )

    def refused(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO below VALUES (1)")

    def count(connection: Connection) -> object:
        return connection.exec_driver_sql("SELECT count(*) FROM below").scalar_one()

    await database.run(prepare, writes=True)
    for _ in range(2):
        with pytest.raises(RowRefused):
            await database.run(refused, writes=True)
        assert await database.run(count) == 0
    await database.close()


async def test_a_writer_that_was_cancelled_while_it_waits_takes_no_lock_later(tmp_path: Path):
    path = tmp_path / "a.db"
    database = Database(parse_store_url(f"sqlite:///{path}"), TimeLimits(), pool_size=1)
    holder = sqlite3.connect(path, isolation_level=None, timeout=0)

    def nothing(_: Connection) -> None:
        return

    for _ in range(5):
        holder.execute("BEGIN IMMEDIATE")
        writer = asyncio.create_task(database.run(nothing, writes=True))
        await asyncio.sleep(0.1)  # its BEGIN waits for the lock
        writer.cancel()
        await asyncio.sleep(0.01)
        holder.execute("ROLLBACK")
        with pytest.raises(asyncio.CancelledError):
            await writer
        await database.run(nothing)  # with the same connection
        holder.execute("BEGIN IMMEDIATE")
        holder.execute("ROLLBACK")
    holder.close()
    await database.close()


async def test_a_lock_in_postgresql_is_not_waited_for_for_ever(postgres_url: str):
    store = Store.open(postgres_url, limits=TimeLimits(lock=0.2))
    await store.migrate()
    url = parse_store_url(postgres_url)
    assert isinstance(url, PostgresUrl)
    other = await asyncpg.connect(url.dsn)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE records IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable):
                await store.record(record_row())
    finally:
        await other.close()
    await store.record(record_row())
    await store.close()


async def test_a_statement_has_a_time_limit(store_url: str):
    store = Store.open(store_url, limits=TimeLimits(statement=0.2))

    def count(connection: Connection) -> None:
        endless = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) "
            "SELECT count(*) FROM n"
        )
        connection.execute(text(endless))

    with pytest.raises(StoreUnavailable):
        await store.database.run(count)
    await store.migrate()
    await store.ping()
    await store.close()


# Each makes the next insertion of a record last for minutes.
SLOW = {
    "sqlite": (
        "CREATE TRIGGER slow BEFORE INSERT ON records BEGIN SELECT (WITH RECURSIVE n(i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) SELECT count(*) FROM n);END",
        "DROP TRIGGER slow",
    ),
    "postgresql": (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(300); RETURN NEW; END $$",
        "CREATE TRIGGER slow BEFORE INSERT ON records FOR EACH ROW EXECUTE FUNCTION slow()",
        "DROP TRIGGER slow ON records",
    ),
}


async def test_a_batch_has_a_time_limit_and_holds_nobody_up_afterwards(store_url: str):
    store = Store.open(store_url, limits=TimeLimits(connect=0.2, lock=0.2, statement=0.2))
    other = Store.open(store_url)
    await store.migrate()
    *slow_down, speed_up = SLOW[store_url.partition(":")[0]]

    async def execute(*statements: str) -> None:
        def work(connection: Connection) -> None:
            for statement in statements:
                connection.exec_driver_sql(statement)

        await other.database.run(work, writes=True)

    await execute(*slow_down)
    with pytest.raises(StoreUnavailable):
        await store.record(record_row())
    await execute(speed_up)
    await asyncio.gather(*(store.record(record_row()) for _ in range(3)))
    assert len((await store.list_records(RecordFilter())).items) == 3
    await store.close()
    await other.close()


async def test_a_database_without_our_schema_is_unavailable(store_url: str):
    store = Store.open(store_url)
    with pytest.raises(StoreUnavailable):
        await store.ping()
    with pytest.raises(StoreUnavailable):
        await store.record(record_row())
    await store.close()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path):
    path = tmp_path / "store.db"
    path.write_bytes(b"this is no database at all, and it is long enough to tell" * 20)
    store = Store.open(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable):
        await store.migrate()
    await store.close()


async def test_a_file_that_is_gone_does_not_come_back_empty(tmp_path: Path):
    path = tmp_path / "store.db"
    store = Store.open(f"sqlite:///{path}")
    await store.migrate()
    await store.close()
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert not path.exists()
    await store.database.close()


def test_a_directory_that_is_missing_is_named(tmp_path: Path):
    with pytest.raises(StoreUnavailable, match=r"missing/store\.db cannot be opened: No such file"):
        Store.open(f"sqlite:///{tmp_path}/missing/store.db")


MIGRATE = """
import asyncio, sys
from meshmint_server.store import Store

async def main():
    store = Store.open(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    await store.migrate()
    await store.ping()
    await store.close()

asyncio.run(main())
"""


async def test_three_processes_migrate_at_once(store_url: str):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", MIGRATE, store_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout
        await asyncio.to_thread(process.stdout.readline)
    outputs = await asyncio.gather(
        *(asyncio.to_thread(process.communicate, "go\n", 60) for process in processes)
    )
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    store = Store.open(store_url)
    assert await store.load_roles() == (0, ())
    await store.close()


async def test_migrating_twice_changes_nothing(store_url: str):
    store = Store.open(store_url)
    await store.migrate()
    row = record_row()
    await store.record(row)
    await store.migrate()
    assert await store.get_record(row.serial_number) == row
    await store.close()


async def test_a_worker_that_starts_does_not_wait_for_those_that_write(tmp_path: Path):
    path = tmp_path / "store.db"
    store = Store.open(f"sqlite:///{path}")
    await store.migrate()
    writer = sqlite3.connect(path)
    writer.execute("BEGIN IMMEDIATE")
    starting = asyncio.create_task(store.migrate())
    done, _ = await asyncio.wait({starting}, timeout=30)  # a migration waits for minutes
    writer.rollback()
    writer.close()
    await starting
    assert done
    await store.close()


async def test_a_schema_of_a_later_release_is_left_alone(store_url: str):
    store = Store.open(store_url)
    await store.migrate()

    def pretend(connection: Connection) -> None:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    await store.database.run(pretend, writes=True)
    await store.migrate()
    await store.record(record_row())
    await store.close()


async def test_the_migrations_build_what_the_schema_says(store_url: str):
    store = Store.open(store_url)
    await store.migrate()

    def compare(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert await store.database.run(compare) == []
    await store.close()


async def test_sqlite_is_durable_by_its_settings(tmp_path: Path):
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    await store.migrate()

    def settings(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    assert await store.database.run(settings) == ["wal", 2, 1, 5000]
    await store.close()


async def test_what_writes_records_to_sqlite_is_durable_by_its_settings(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/store.db"
    store = Store.open(url)
    await store.migrate()
    await store.close()
    writer = SqliteWriter(SqliteUrl(tmp_path / "store.db"), TimeLimits())
    await writer.write([record_row()])
    assert writer._connection
    names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "trusted_schema")
    settings = [writer._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    await writer.close()
    assert settings == ["wal", 2, 1, 5000, 0]


async def test_what_writes_records_makes_no_file_anew(tmp_path: Path):
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    (tmp_path / "store.db").unlink()
    with pytest.raises(StoreUnavailable):
        await store.record(record_row())
    await store.close()
    assert not [*tmp_path.iterdir()]
