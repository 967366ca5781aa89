"""Statements on records: look up by serial number, list newest first.

Lists read an index in their own order and stop at the end of the page, so that
their cost does not grow with the table.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, literal, select, tuple_

from meshmint_server.errors import InvalidRequest, Violation
from meshmint_server.store.names import normal_name
from meshmint_server.store.paging import (
    bad_page_token,
    bounded_page_size,
    decode_page_token,
    encode_page_token,
)
from meshmint_server.store.rows import Page, RecordFilter, RecordRow
from meshmint_server.store.schema import (
    FILTERED,
    from_microseconds,
    record_names,
    records,
    to_microseconds,
)

__all__ = [
    "RecordList",
    "fetch_latest_expiry",
    "fetch_record",
    "from_row",
    "normal_serial_number",
]

_LISTED = [column for column in records.c if column.name != "certificate"]
_POSITION = struct.Struct(">qq")
_SERIAL = re.compile(r"[0-9a-f]{1,64}")


def normal_serial_number(text: str) -> str:
    """A serial number as it is kept: lower-case hexadecimal, no leading zeros.

    Raises:
        InvalidRequest: It is not hexadecimal, colons and hyphens apart.
    """
    plain = text.replace(":", "").replace("-", "").lower()
    if not _SERIAL.fullmatch(plain):
        raise InvalidRequest(
            "The serial number is not hexadecimal.",
            violations=[Violation("serial_number", "Use hexadecimal digits, such as 3f:0a:c1.")],
        )
    return plain.lstrip("0") or "0"


def fetch_record(connection: Connection, serial_number: str) -> RecordRow | None:
    """The record with this normal serial number, certificate included."""
    result = connection.execute(select(records).where(records.c.serial_number == serial_number))
    row = result.one_or_none()
    return None if row is None else from_row(row, row.certificate)


def fetch_latest_expiry(connection: Connection, issuer: str, besides_role: str) -> datetime | None:
    """When the last of an issuer's certificates expires; from two indexes, no row is read."""
    of_role = select(records.c.sequence).where(records.c.role == besides_role)
    result = connection.execute(
        select(func.max(records.c.not_after)).where(
            records.c.issuer == issuer, records.c.sequence.not_in(of_role)
        )
    )
    found: datetime | None = result.scalar_one()
    return found


class RecordList:
    """One page of one list, checked when made, before the database is asked.

    Attributes:
        scope: What a page token of this list is bound to.

    Raises:
        InvalidRequest: The page token is not one of this list.
    """

    def __init__(self, chosen: RecordFilter, page_size: int, page_token: str) -> None:
        self._filter = chosen
        self._size = bounded_page_size(page_size)
        self.scope = "records " + json.dumps(asdict(chosen), default=datetime.isoformat)
        self._after: tuple[datetime, int] | None = None
        # Bounds the walk for the index; exclusive, as the others are.
        self._made_before: datetime | None = None
        if page_token:
            try:
                created_at, sequence = _POSITION.unpack(decode_page_token(self.scope, page_token))
                self._after = from_microseconds(created_at), sequence
                self._made_before = from_microseconds(created_at + 1)
            except (struct.error, OverflowError):
                raise bad_page_token() from None

    def fetch(self, connection: Connection) -> Page[RecordRow]:
        """Reads the page."""
        found = connection.execute(self.statement()).all()
        items = found[: self._size]
        token = ""
        if len(found) > self._size:
            last = items[-1]
            position = _POSITION.pack(to_microseconds(last.created_at), last.sequence)
            token = encode_page_token(self.scope, position)
        return Page(tuple(from_row(row, b"") for row in items), token)

    def statement(self) -> Select[Any]:
        """What `fetch` asks the database."""
        name = self._filter.name
        statement = select(*_LISTED)
        if name is None or _is_spiffe_id(name):
            created_at, sequence = records.c.created_at, records.c.sequence
        else:
            created_at, sequence = record_names.c.created_at, record_names.c.sequence
            statement = statement.join(
                record_names, record_names.c.sequence == records.c.sequence
            ).where(record_names.c.name == normal_name(name))
        statement = (
            statement.where(*self._equalities(), *self._times(created_at))
            .order_by(created_at.desc(), sequence.desc())
            .limit(self._size + 1)
        )
        if self._after is not None:
            last_created_at, last_sequence = self._after
            position = tuple_(
                literal(last_created_at, records.c.created_at.type),
                literal(last_sequence, records.c.sequence.type),
            )
            statement = statement.where(tuple_(created_at, sequence) < position)
        return statement

    def _equalities(self) -> Iterator[ColumnElement[bool]]:
        chosen = self._filter
        name = chosen.name or ""
        # The most selective first.
        wanted = [(column, getattr(chosen, column)) for column in FILTERED]
        if _is_spiffe_id(name):
            wanted.insert(0, ("spiffe_id", name))
        is_led = bool(name) and not _is_spiffe_id(name)
        for column_name, value in wanted:
            if value is None:
                continue
            column: ColumnElement[Any] = records.c[column_name]
            # One index leads; the rest is checked on its rows. Without statistics
            # SQLite would take any, and read a whole role to find one caller.
            yield (column.concat("") if is_led else column) == value
            is_led = True

    def _times(self, created_at: ColumnElement[Any]) -> Iterator[ColumnElement[bool]]:
        chosen = self._filter
        not_after = records.c.not_after
        if chosen.created_from is not None:
            yield created_at >= chosen.created_from
        # What has expired by then was made before then, too. One bound, the tightest: the
        # index starts there, and SQLite would take any of them.
        bounds = (chosen.created_before, chosen.expires_before, self._made_before)
        before = [at for at in bounds if at is not None]
        if before:
            yield created_at < min(before)
        if chosen.expires_from is not None:
            yield not_after >= chosen.expires_from
        if chosen.expires_before is not None:
            yield not_after < chosen.expires_before


def _is_spiffe_id(name: str) -> bool:
    # A certificate has one at most, and no other name begins like it.
    return name.startswith("spiffe://")


def from_row(row: Row[Any], certificate: bytes, *, common_name: str | None = None) -> RecordRow:
    """A record as a value; `certificate` is empty where it was not read."""
    return RecordRow(
        serial_number=row.serial_number,
        certificate=certificate,
        issuer=row.issuer,
        role=row.role,
        authenticator=row.authenticator,
        caller=row.caller,
        spiffe_id=row.spiffe_id,
        subject=row.subject,
        names=tuple(row.names),
        not_before=row.not_before,
        not_after=row.not_after,
        created_at=row.created_at,
        request_id=row.request_id,
        common_name=common_name,
    )
