"""Statements on the keys that sign JWT-SVIDs.

They are in the trust bundle beside the roots of the issuers, and one number stands for
both: every change counts the revision of the issuers up.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select, true, update

from meshmint_server.store.configured import advance
from meshmint_server.store.rows import JwtKeyRow, JwtKeyState
from meshmint_server.store.schema import jwt_keys, revisions

__all__ = ["fetch_keys", "write_key"]


def write_key(connection: Connection, row: JwtKeyRow, at_revision: int) -> bool:
    """Creates or replaces a key; an active one retires the one that was active before it.

    Returns:
        False, and nothing written, if issuers or keys are not at `at_revision` any more.
    """
    if not advance(connection, "issuers", at_revision):
        return False
    if row.state is JwtKeyState.ACTIVE:
        connection.execute(
            update(jwt_keys)
            .where(jwt_keys.c.state == JwtKeyState.ACTIVE.value, jwt_keys.c.key_id != row.key_id)
            .values(state=JwtKeyState.RETIRED.value, retired_at=row.activated_at)
        )
    values = {
        "key_id": row.key_id,
        "state": row.state.value,
        "key_uri": row.key_uri,
        "public_key": row.public_key,
        "created_at": row.created_at,
        "published_at": row.published_at,
        "activated_at": row.activated_at,
        "retired_at": row.retired_at,
    }
    changed = connection.execute(
        update(jwt_keys).where(jwt_keys.c.key_id == row.key_id).values(values)
    )
    if changed.rowcount == 0:
        connection.execute(insert(jwt_keys).values(values))
    return True


def fetch_keys(connection: Connection) -> tuple[int, tuple[JwtKeyRow, ...]]:
    """Every key, in the order in which they were made, and the revision of issuers and keys."""
    # One statement sees one state, as for issuers.
    result = connection.execute(
        select(revisions.c.value.label("revision"), jwt_keys)
        .select_from(revisions.outerjoin(jwt_keys, true()))
        .where(revisions.c.kind == "issuers")
        .order_by(jwt_keys.c.created_at, jwt_keys.c.key_id)
    )
    rows = result.all()
    return int(rows[0].revision), tuple(_key(row) for row in rows if row.key_id is not None)


def _key(row: Row[Any]) -> JwtKeyRow:
    return JwtKeyRow(
        key_id=row.key_id,
        state=JwtKeyState(row.state),
        key_uri=row.key_uri,
        public_key=row.public_key,
        created_at=row.created_at,
        published_at=row.published_at,
        activated_at=row.activated_at,
        retired_at=row.retired_at,
    )
