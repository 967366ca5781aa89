"""Statements on revocations and CRLs: one row per revocation, one per published CRL.

Nothing here builds a CRL, and nothing that revokes touches one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    text,
    update,
)

from meshmint_server.store.configured import advance
from meshmint_server.store.rows import CrlKind, CrlRow, RevocationRow, RevokedSerial
from meshmint_server.store.schema import crls, revocations

__all__ = [
    "delete_crl",
    "delete_crls",
    "fetch_crl",
    "fetch_crl_states",
    "fetch_latest_revocation",
    "fetch_revocation",
    "fetch_revocations_after",
    "fetch_revocations_of_serials",
    "fetch_shard",
    "write_crl",
    "write_revocation",
]

# "mint-rev" in ASCII; see `meshmint_server.store.migrate` for the other one.
_LOCK = int.from_bytes(b"mint-rev", "big", signed=True)
_SEEN = (
    revocations.c.sequence,
    revocations.c.issuer,
    revocations.c.serial_number,
    revocations.c.revoked_at,
    revocations.c.reason,
    revocations.c.not_after,
)
_WRITTEN = tuple(column.name for column in revocations.c if column.name != "sequence")
# One statement, for what is almost always the first revocation of a certificate.
_REVOKE = insert(revocations).from_select(
    _WRITTEN,
    select(*(bindparam(f"new_{name}", type_=revocations.c[name].type) for name in _WRITTEN)).where(
        ~exists().where(revocations.c.serial_number == bindparam("new_serial_number"))
    ),
)
_STATE = [column for column in crls.c if column.name != "document"]


def write_revocation(connection: Connection, row: RevocationRow) -> RevocationRow:
    """Revokes, and gives back what is on record: `row`, or the one that was first."""
    if connection.dialect.name == "postgresql":
        # Until the commit. SQLite has one writer at a time anyway.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    written = connection.execute(_REVOKE, {f"new_{name}": getattr(row, name) for name in _WRITTEN})
    if written.rowcount == 1:
        return row
    statement = select(revocations).where(revocations.c.serial_number == row.serial_number)
    return _revocation(connection.execute(statement).one())


def fetch_revocation(connection: Connection, serial_number: str) -> RevocationRow | None:
    """The revocation of the certificate with this normal serial number."""
    statement = select(revocations).where(revocations.c.serial_number == serial_number)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _revocation(row)


def fetch_revocations_of_serials(
    connection: Connection, serial_numbers: list[str]
) -> dict[str, RevocationRow]:
    """Those of a page's certificates that are revoked, by serial number."""
    statement = select(revocations).where(revocations.c.serial_number.in_(serial_numbers))
    return {row.serial_number: _revocation(row) for row in connection.execute(statement)}


def fetch_latest_revocation(connection: Connection, shard: tuple[str, int] | None) -> int:
    """The highest sequence there is, of all or of one issuer's shard; 0 if there is none."""
    statement = select(func.max(revocations.c.sequence))
    if shard is not None:
        statement = statement.where(_is_of(shard))
    return int(connection.execute(statement).scalar_one() or 0)


def fetch_revocations_after(
    connection: Connection, sequence: int, limit: int
) -> tuple[RevokedSerial, ...]:
    """What came after `sequence`, in order, at most so many."""
    statement = (
        select(*_SEEN)
        .where(revocations.c.sequence > sequence)
        .order_by(revocations.c.sequence)
        .limit(limit)
    )
    return tuple(_seen(row) for row in connection.execute(statement))


def fetch_shard(
    connection: Connection,
    shard: tuple[str, int],
    *,
    after: int,
    through: int,
    expires_from: datetime,
    limit: int,
) -> tuple[tuple[RevokedSerial, ...], int | None]:
    """A part of what one shard lists, in order, and where the next part begins.

    Args:
        shard: Issuer and number.
        after: Sequence to begin behind.
        through: Sequence to end with.
        expires_from: Leaves out what has expired before that.
        limit: The most rows to look at.

    Returns:
        The revocations, and the `after` of the next part; None behind the last.
    """
    statement = (
        select(*_SEEN)
        .where(_is_of(shard))
        .where(revocations.c.sequence > after, revocations.c.sequence <= through)
        .order_by(revocations.c.sequence)
        .limit(limit)
    )
    rows = connection.execute(statement).all()
    listed = tuple(one for one in map(_seen, rows) if one.not_after >= expires_from)
    return listed, rows[-1].sequence if len(rows) == limit else None


def write_crl(connection: Connection, row: CrlRow, after: int) -> bool:
    """Publishes a CRL; False, and nothing changed, if `after` is not the shard's newest number.

    Whoever made a CRL beside another looked at the revocations earlier or later than that
    one, and their numbers do not tell which: clocks differ.
    """
    advance(connection, "crls")
    of_shard = (crls.c.issuer == row.issuer) & (crls.c.shard == row.shard)
    newest = connection.execute(select(func.max(crls.c.number)).where(of_shard))
    if (newest.scalar_one() or 0) != after or row.number <= after:
        return False
    values = {
        "issuer": row.issuer,
        "shard": row.shard,
        "kind": row.kind.value,
        "number": row.number,
        "base_number": row.base_number,
        "this_update": row.this_update,
        "next_update": row.next_update,
        "through": row.through,
        "entries": row.entries,
        "document": row.document,
    }
    changed = connection.execute(
        update(crls).where(of_shard, crls.c.kind == row.kind.value).values(values)
    )
    if changed.rowcount == 0:
        connection.execute(insert(crls).values(values))
    return True


def delete_crls(connection: Connection, issuer: str) -> None:
    """Takes an issuer's CRLs back: for one that is gone."""
    advance(connection, "crls")
    connection.execute(delete(crls).where(crls.c.issuer == issuer))


def delete_crl(connection: Connection, issuer: str, shard: int, kind: CrlKind) -> None:
    """Takes one CRL back."""
    advance(connection, "crls")
    connection.execute(
        delete(crls).where(
            crls.c.issuer == issuer, crls.c.shard == shard, crls.c.kind == kind.value
        )
    )


def fetch_crl(connection: Connection, issuer: str, shard: int, kind: CrlKind) -> CrlRow | None:
    """One CRL with its document."""
    statement = select(crls).where(
        crls.c.issuer == issuer, crls.c.shard == shard, crls.c.kind == kind.value
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else _crl(row, row.document)


def fetch_crl_states(connection: Connection) -> tuple[CrlRow, ...]:
    """Every CRL, without its document."""
    statement = select(*_STATE).order_by(crls.c.issuer, crls.c.shard, crls.c.kind)
    return tuple(_crl(row, b"") for row in connection.execute(statement))


def _is_of(shard: tuple[str, int]) -> Any:
    return (revocations.c.issuer == shard[0]) & (revocations.c.shard == shard[1])


def _revocation(row: Row[Any]) -> RevocationRow:
    return RevocationRow(
        serial_number=row.serial_number,
        issuer=row.issuer,
        shard=row.shard,
        reason=row.reason,
        revoked_at=row.revoked_at,
        not_after=row.not_after,
        authenticator=row.authenticator,
        caller=row.caller,
        request_id=row.request_id,
    )


def _seen(row: Any) -> RevokedSerial:
    return RevokedSerial(*row)


def _crl(row: Row[Any], document: bytes) -> CrlRow:
    return CrlRow(
        issuer=row.issuer,
        shard=row.shard,
        kind=CrlKind(row.kind),
        number=row.number,
        base_number=row.base_number,
        this_update=row.this_update,
        next_update=row.next_update,
        through=row.through,
        entries=row.entries,
        document=document,
    )
