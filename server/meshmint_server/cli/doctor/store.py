"""The store: whether it answers, has our schema and can be written; and what it holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.config import Config
from meshmint_server.errors import StoreUnavailable
from meshmint_server.store import (
    CrlRow,
    FederatedBundleRow,
    FetchFailureRow,
    IssuerRow,
    JwtKeyRow,
    RoleRow,
    SchemaState,
    Store,
)
from meshmint_server.store.url import SqliteUrl, parse_store_url

__all__ = ["StoreContents", "check_store", "missing_store", "not_answering"]

_STORE = "store"


@dataclass(slots=True)
class StoreContents:
    """What could be read; None where that failed, which is a finding of its own."""

    issuers: tuple[IssuerRow, ...] | None = None
    jwt_keys: tuple[JwtKeyRow, ...] | None = None
    roles: tuple[RoleRow, ...] | None = None
    crls: tuple[CrlRow, ...] | None = None
    federated: tuple[FederatedBundleRow, ...] | None = None
    fetch_failures: tuple[FetchFailureRow, ...] = ()
    clock: datetime | None = None


def missing_store(config: Config) -> Finding | None:
    """Says so if SQLite's file is not there: opening it would be no use."""
    url = parse_store_url(config.store)
    if not isinstance(url, SqliteUrl) or url.path.exists():
        return None
    return error(
        _STORE,
        f"There is no database {url.path}.",
        "If this is a new service, 'meshmintd ca csr' makes it. If not, bring the backup back: "
        "records, roles and issuers were in it.",
    )


def not_answering(fault: StoreUnavailable) -> Finding:
    """What the database said, for its operator."""
    said = "; ".join(getattr(fault, "__notes__", ()))
    return error(
        _STORE,
        f"The store does not answer ({said})." if said else fault.message,
        "Check that the database runs, that 'store' in the configuration is right, and that this "
        "user may use it.",
    )


async def check_store(store: Store, contents: StoreContents) -> AsyncIterator[Finding]:
    """Asks the database, and fills in what it holds."""
    try:
        state = await store.schema_state()
    except StoreUnavailable as fault:
        yield not_answering(fault)
        return
    yield _schema(state)
    if state is SchemaState.ABSENT:
        return
    try:
        await store.try_writing()
    except StoreUnavailable as fault:
        said = "; ".join(getattr(fault, "__notes__", ())) or fault.message
        yield error(
            _STORE,
            f"The store answers, but cannot be written ({said}).",
            "Check its disk, its permissions, and that it is no read-only replica.",
        )
    else:
        yield ok(_STORE, "It answers, and a write transaction works (it was rolled back).")
    async for finding in _read(store, contents, is_older=state is SchemaState.OLDER):
        yield finding


def _schema(state: SchemaState) -> Finding:
    if state is SchemaState.CURRENT:
        return ok(_STORE, "Its schema is up to date.")
    if state is SchemaState.ABSENT:
        return error(
            _STORE,
            "The database answers, but has no schema of Meshmint's.",
            "Check that 'store' names the right database. 'meshmintd serve' and 'meshmintd ca csr' "
            "make the schema.",
        )
    if state is SchemaState.OLDER:
        return warning(
            _STORE,
            "Its schema is of an older release.",
            "Nothing: 'meshmintd serve' brings it up to date when it starts. What it does not hold "
            "yet is not checked.",
        )
    return warning(
        _STORE,
        "Its schema is of a newer release than this program.",
        "Finish the upgrade: run the newer release everywhere.",
    )


async def _read(store: Store, contents: StoreContents, *, is_older: bool) -> AsyncIterator[Finding]:
    for read in (_clock, _roles, _crls, _federated, _jwt_keys):
        try:
            await read(store, contents)
        except StoreUnavailable as fault:
            if not is_older:  # where it is, this may just be a table that is not there yet
                yield not_answering(fault)
                return
    try:
        _, contents.issuers = await store.load_issuers()
    except StoreUnavailable as fault:
        if not is_older:
            yield not_answering(fault)
    except (ValueError, TypeError):
        # Nothing that was written by this service.
        yield error(
            _STORE,
            "The issuers cannot be read: a row of the table 'issuers' is damaged.",
            "Bring the table back from a backup; 'meshmintd serve' cannot start like this.",
        )


async def _clock(store: Store, contents: StoreContents) -> None:
    contents.clock = await store.clock()


async def _roles(store: Store, contents: StoreContents) -> None:
    _, contents.roles = await store.load_roles()


async def _crls(store: Store, contents: StoreContents) -> None:
    contents.crls = await store.list_crls()


async def _federated(store: Store, contents: StoreContents) -> None:
    _, federated = await store.load_federated_bundles()
    contents.fetch_failures = await store.list_fetch_failures()
    contents.federated = federated


async def _jwt_keys(store: Store, contents: StoreContents) -> None:
    _, contents.jwt_keys = await store.load_jwt_keys()
