"""A database that the first schema has filled, brought up to date: nothing lost, all found."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import timedelta

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from meshmint_server.cli.doctor.finding import Level
from meshmint_server.cli.doctor.store import StoreContents, check_store
from meshmint_server.issuance import Naming
from meshmint_server.store import IssuerState, RecordFilter, RecordRow, RoleRow, Store
from meshmint_server.store.migrate import revisions
from meshmint_server.store.schema import metadata, record_names, to_microseconds
from meshmint_server.store.upgrade import migrations
from sqlalchemy import Connection, func, select, text
from support.leaves import to_der
from support.pki import make_root, subject
from support.rows import NOON, record_row

SVID = "spiffe://example.org/ns/shop/sa/cart"
RECORD = text(
    "INSERT INTO records (serial_number, certificate, issuer, role, authenticator, caller,"
    " spiffe_id, subject, names, not_before, not_after, created_at, request_id) VALUES"
    " (:serial_number, :certificate, :issuer, :role, :authenticator, :caller, :spiffe_id,"
    " :subject, :names, :not_before, :not_after, :created_at, :request_id)"
)
ISSUER = text(
    "INSERT INTO issuers (name, state, key_uri, public_key, certificate, chain, roots, created_at)"
    " VALUES (:name, :state, 'pkcs11:token=t', :key, :certificate, '[]', '[]', :created_at)"
)


def bring_to(connection: Connection, revision: str) -> None:
    """Makes the schema as it was at a revision."""
    config = migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def fill(store: Store, rows: list[RecordRow]) -> None:
    """Makes the first schema, and puts in what its release would have."""
    database = store.database
    if database.is_sqlite:
        await database.use_write_ahead_log()

    def first_schema(connection: Connection) -> None:
        bring_to(connection, "0001")
        connection.execute(RECORD, [as_first(row) for row in rows])
        connection.execute(
            text("INSERT INTO roles (name, document) VALUES ('web', '{}')"),
        )
        for name, state, certificate in (
            ("one", "active", b"0"), ("two", "pending", None), ("zero", "retired", b"0"),
        ):  # fmt: skip
            values = {"name": name, "state": state, "key": b"k", "certificate": certificate}
            connection.execute(ISSUER, values | {"created_at": to_microseconds(NOON)})

    await database.run_migration(first_schema)


def as_first(row: RecordRow) -> dict[str, object]:
    columns = (
        "serial_number", "certificate", "issuer", "role", "authenticator", "caller", "spiffe_id",
        "subject", "request_id",
    )  # fmt: skip
    times = ("not_before", "not_after", "created_at")
    return {
        **{name: getattr(row, name) for name in columns},
        **{name: to_microseconds(getattr(row, name)) for name in times},
        "names": json.dumps(row.names),
    }


def filled_rows() -> list[RecordRow]:
    """Some hundreds, one of them with a certificate to read a common name from."""
    # A root's certificate: what matters here is that its subject has a common name.
    known = to_der(make_root(subject=subject("The Shop")).certificate)
    return [
        record_row(spiffe_id=SVID, names=(f"URI:{SVID}",), certificate=known),
        *(
            record_row(names=(f"DNS:{number}.Example.org", "IP:2001:db8::1"), spiffe_id=None)
            for number in range(600)
        ),
    ]


async def found(store: Store, name: str) -> list[str]:
    page = await store.list_records(RecordFilter(name=name), 1000)
    return [row.serial_number for row in page.items]


async def test_a_filled_database_of_the_first_schema_is_brought_up_to_date(store_url: str) -> None:
    store = Store.open(store_url)
    rows = filled_rows()
    await fill(store, rows)
    await store.migrate()

    def compare(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    assert await store.database.run(compare) == []
    assert [await store.get_record(row.serial_number) for row in rows[::100]] == rows[::100]
    assert await store.get_role("web") == RoleRow("web", "{}")
    _, issuers = await store.load_issuers()
    assert [(one.name, one.state, one.published_at, one.activated_at) for one in issuers] == [
        ("one", IssuerState.ACTIVE, NOON, NOON),
        ("two", IssuerState.PENDING, None, None),
        ("zero", IssuerState.RETIRED, NOON, None),
    ]
    assert {one.crl_shards for one in issuers} == {1}
    await store.close()


async def test_records_of_the_first_schema_are_found_by_their_names_once_they_have_some(
    store_url: str,
) -> None:
    store = Store.open(store_url)
    rows = filled_rows()
    await fill(store, rows)
    await store.migrate()
    later = NOON + timedelta(days=1)
    late = record_row(spiffe_id=None, names=("DNS:late.example.org",), created_at=later)
    await store.record(late)
    await Naming(store).run()
    serials = [row.serial_number for row in rows]
    assert await found(store, "599.example.org") == [serials[600]]
    assert await found(store, "0.example.org") == [serials[1]]
    assert await found(store, "2001:0db8::1") == serials[:0:-1]
    assert await found(store, "the shop") == serials[:1]
    assert await found(store, SVID) == serials[:1]
    assert await found(store, "late.example.org") == [late.serial_number]
    await Naming(store).run()  # as the next leader does
    counted = select(func.count()).select_from(record_names)
    assert await store.database.run(lambda c: c.scalar(counted)) == 2 * 600 + 1 + 1
    await store.close()


async def test_naming_goes_on_where_it_was_ended(store_url: str) -> None:
    store = Store.open(store_url)
    rows = filled_rows()
    await fill(store, rows)
    await store.migrate()
    assert await store.name_records(250)  # the newest, and then the leader dies
    assert await found(store, "599.example.org") == [rows[600].serial_number]
    assert await found(store, "0.example.org") == []
    await asyncio.gather(Naming(store).run(), store.record(record_row()))
    assert await found(store, "0.example.org") == [rows[1].serial_number]
    await store.close()


@pytest.mark.parametrize("lacks_mark", [False, True])
async def test_a_new_database_has_nothing_to_name(store_url: str, lacks_mark: bool) -> None:
    store = Store.open(store_url)
    await store.migrate()
    if lacks_mark:
        forget = text("DELETE FROM revisions WHERE kind = 'unnamed_records'")
        await store.database.run(lambda c: c.execute(forget), writes=True)
    await store.record(record_row())
    assert not await store.name_records(250)
    await store.close()


@pytest.mark.parametrize("revision", ["0001", "0002", "0003", "0004", "0005"])
async def test_doctor_takes_no_older_schema_for_a_store_that_does_not_answer(
    store_url: str, revision: str
) -> None:
    store = Store.open(store_url)
    await store.database.run_migration(lambda connection: bring_to(connection, revision))
    contents = StoreContents()
    found = [finding async for finding in check_store(store, contents)]
    await store.close()

    assert {one.level for one in found} == {Level.OK, Level.WARNING}
    assert [one.message for one in found if one.level is Level.WARNING] == [
        "Its schema is of an older release."
    ]
    assert contents.roles == ()
    assert (contents.issuers == ()) == (revision > "0002")
    assert (contents.federated == ()) == (revision > "0004")
    assert contents.jwt_keys is None


def test_migrations_are_named_by_their_revisions_in_their_order() -> None:
    scripts = ScriptDirectory.from_config(migrations()).walk_revisions("base", "heads")
    assert [script.revision for script in scripts] == revisions()[::-1]


def test_a_process_that_finds_the_schema_up_to_date_needs_no_alembic() -> None:
    program = "import sys, meshmint_server.cli.program; print('alembic' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout == "False\n"
