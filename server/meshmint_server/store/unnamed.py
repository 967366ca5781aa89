"""Names for the records of before there were names to search by: newest first, bit by bit.

The migration notes up to which sequence they lack; nothing else ever counts that up.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.x509.oid import NameOID
from sqlalchemy import Connection, insert, select, update

from meshmint_server.store.names import searched_names
from meshmint_server.store.records import from_row
from meshmint_server.store.schema import record_names, records, revisions

__all__ = ["name_records"]

_MARK = revisions.c.kind == "unnamed_records"


def name_records(connection: Connection, limit: int) -> bool:
    """Gives names to so many of the newest records that lack them; whether any are left."""
    through = connection.execute(select(revisions.c.value).where(_MARK)).scalar()
    if not through:
        return False
    # Held, so that nothing is tidied away between a look at it and its names.
    statement = select(records).where(records.c.sequence <= through)
    statement = statement.order_by(records.c.sequence.desc()).limit(limit).with_for_update()
    rows = connection.execute(statement).all()
    named = [
        {"name": name, "created_at": row.created_at, "sequence": row.sequence}
        for row in rows
        for name in searched_names(
            from_row(row, row.certificate, common_name=_common_name(row.certificate))
        )
    ]
    if named:
        connection.execute(insert(record_names), named)
    left = rows[-1].sequence - 1 if len(rows) == limit else 0
    connection.execute(update(revisions).where(_MARK).values(value=left))
    return left > 0


def _common_name(certificate: bytes) -> str | None:
    try:
        subject = x509.load_der_x509_certificate(certificate).subject
    except ValueError:
        return None
    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else None
