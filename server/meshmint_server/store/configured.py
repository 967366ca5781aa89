"""Statements on roles and issuers: what operators write and workers keep in memory.

Every change counts the revision of its kind up in the same transaction, so a
worker learns of it by reading one number.
"""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, insert, or_, select, true, update

from meshmint_server.store.paging import (
    bad_page_token,
    bounded_page_size,
    decode_page_token,
    encode_page_token,
)
from meshmint_server.store.rows import IssuerRow, IssuerState, Page, RoleRow
from meshmint_server.store.schema import issuers, revisions, roles

__all__ = [
    "NameList",
    "delete_role",
    "fetch_issuer",
    "fetch_issuers",
    "fetch_revision",
    "fetch_role",
    "fetch_roles",
    "note_failure",
    "note_longest_leaf",
    "write_issuer",
    "write_role",
]


def fetch_revision(connection: Connection, kind: str) -> int:
    """The revision of ``roles`` or ``issuers``."""
    result = connection.execute(select(revisions.c.value).where(revisions.c.kind == kind))
    return int(result.scalar_one())


def advance(connection: Connection, kind: str, at: int | None = None) -> bool:
    # First in its transaction: the row's lock lines up everybody who changes this kind.
    statement = update(revisions).where(revisions.c.kind == kind)
    if at is not None:
        statement = statement.where(revisions.c.value == at)
    result = connection.execute(statement.values(value=revisions.c.value + 1))
    return result.rowcount > 0


def _upsert(connection: Connection, table: Table, values: dict[str, Any]) -> None:
    changed = connection.execute(update(table).where(table.c.name == values["name"]).values(values))
    if changed.rowcount == 0:
        connection.execute(insert(table).values(values))


def write_role(connection: Connection, row: RoleRow) -> None:
    """Creates or replaces a role; does nothing if it stands as it is."""
    if fetch_role(connection, row.name) == row:
        return
    advance(connection, "roles")
    _upsert(connection, roles, {"name": row.name, "document": row.document})


def fetch_role(connection: Connection, name: str) -> RoleRow | None:
    """One role."""
    row = connection.execute(select(roles).where(roles.c.name == name)).one_or_none()
    return None if row is None else _role(row)


def delete_role(connection: Connection, name: str) -> bool:
    """Deletes a role; False if there was none."""
    if fetch_role(connection, name) is None:
        return False
    advance(connection, "roles")
    result = connection.execute(delete(roles).where(roles.c.name == name))
    return result.rowcount > 0


def fetch_roles(connection: Connection) -> tuple[int, tuple[RoleRow, ...]]:
    """Every role, and a revision that is at most as new as they are."""
    # In this order: a change in between is loaded now, and once more at the next look.
    revision = fetch_revision(connection, "roles")
    result = connection.execute(select(roles).order_by(roles.c.name))
    return revision, tuple(_role(row) for row in result)


def write_issuer(connection: Connection, row: IssuerRow, at_revision: int | None) -> bool:
    """Creates or replaces an issuer; an active one retires the one that was active before it.

    Returns:
        False, and nothing written, if the issuers are not at `at_revision` any more.
    """
    if not advance(connection, "issuers", at_revision):
        return False
    if row.state is IssuerState.ACTIVE:
        connection.execute(
            update(issuers)
            .where(issuers.c.state == IssuerState.ACTIVE.value, issuers.c.name != row.name)
            .values(state=IssuerState.RETIRED.value, retired_at=row.activated_at)
        )
    _upsert(connection, issuers, _issuer_values(row))
    return True


def note_failure(connection: Connection, name: str, failure: str | None) -> None:
    """Writes down why the last step with an issuer failed. For people: no revision counts it."""
    connection.execute(update(issuers).where(issuers.c.name == name).values(last_failure=failure))


def note_longest_leaf(connection: Connection, microseconds: int) -> None:
    """Writes down how long certificates of the active issuer may live; never less than before."""
    known = issuers.c.longest_leaf
    connection.execute(
        update(issuers)
        .where(issuers.c.state == IssuerState.ACTIVE.value)
        .where(or_(known.is_(None), known < microseconds))
        .values(longest_leaf=microseconds)
    )


def fetch_issuer(connection: Connection, name: str) -> IssuerRow | None:
    """One issuer."""
    row = connection.execute(select(issuers).where(issuers.c.name == name)).one_or_none()
    return None if row is None else _issuer(row)


def fetch_issuers(connection: Connection) -> tuple[int, tuple[IssuerRow, ...]]:
    """Every issuer, and their revision."""
    # One statement sees one state: the revision is told to the world as the sequence of the
    # trust bundle, and must never stand for two sets of roots.
    result = connection.execute(
        select(revisions.c.value.label("revision"), issuers)
        .select_from(revisions.outerjoin(issuers, true()))
        .where(revisions.c.kind == "issuers")
        .order_by(issuers.c.name)
    )
    rows = result.all()
    return int(rows[0].revision), tuple(_issuer(row) for row in rows if row.name is not None)


class NameList:
    """One page of a list by name, checked when made, before the database is asked.

    Raises:
        InvalidRequest: The page token is not one of this list.
    """

    def __init__(self, table: Table, page_size: int, page_token: str) -> None:
        self._table = table
        self._size = bounded_page_size(page_size)
        self._after = ""
        if page_token:
            try:
                self._after = decode_page_token(table.name, page_token).decode("utf-8")
            except UnicodeDecodeError:
                raise bad_page_token() from None

    def fetch_roles(self, connection: Connection) -> Page[RoleRow]:
        """Reads the page of roles."""
        rows, token = self._fetch(connection)
        return Page(tuple(_role(row) for row in rows), token)

    def fetch_issuers(self, connection: Connection) -> Page[IssuerRow]:
        """Reads the page of issuers."""
        rows, token = self._fetch(connection)
        return Page(tuple(_issuer(row) for row in rows), token)

    def _fetch(self, connection: Connection) -> tuple[list[Row[Any]], str]:
        name = self._table.c.name
        statement = select(self._table).order_by(name).limit(self._size + 1)
        if self._after:
            statement = statement.where(name > self._after)
        found = connection.execute(statement).all()
        rows = list(found[: self._size])
        if len(found) <= self._size:
            return rows, ""
        return rows, encode_page_token(self._table.name, rows[-1].name.encode())


def _role(row: Row[Any]) -> RoleRow:
    return RoleRow(name=row.name, document=row.document)


def _issuer_values(row: IssuerRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "state": row.state.value,
        "key_uri": row.key_uri,
        "public_key": row.public_key,
        "certificate": row.certificate,
        "chain": [base64.b64encode(der).decode() for der in row.chain],
        "roots": [base64.b64encode(der).decode() for der in row.roots],
        "created_at": row.created_at,
        "published_at": row.published_at,
        "activated_at": row.activated_at,
        "retired_at": row.retired_at,
        "crl_shards": row.crl_shards,
        "crl_url": row.crl_url,
        "last_failure": row.last_failure,
    }


def _issuer(row: Row[Any]) -> IssuerRow:
    return IssuerRow(
        name=row.name,
        state=IssuerState(row.state),
        key_uri=row.key_uri,
        public_key=row.public_key,
        certificate=row.certificate,
        chain=tuple(base64.b64decode(der) for der in row.chain),
        roots=tuple(base64.b64decode(der) for der in row.roots),
        created_at=row.created_at,
        published_at=row.published_at,
        activated_at=row.activated_at,
        retired_at=row.retired_at,
        crl_shards=row.crl_shards,
        crl_url=row.crl_url,
        last_failure=row.last_failure,
        longest_leaf=(
            None if row.longest_leaf is None else timedelta(microseconds=row.longest_leaf)
        ),
    )
