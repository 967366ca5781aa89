"""Statements on the records table: insert, look up by serial number, list newest first.

Lists read an index in their own order and stop at the end of the page, so that
their cost does not grow with the table.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, insert, literal, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection

from meshmint_server.errors import InvalidRequest, Violation
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
    records,
    to_microseconds,
)

__all__ = ["RecordList", "fetch_record", "insert_records", "normal_serial_number"]

_INSERT = insert(records)
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


async def insert_records(connection: AsyncConnection, rows: Sequence[RecordRow]) -> None:
    """Inserts `rows`, oldest first."""
    await connection.execute(_INSERT, [_as_values(row) for row in rows])


async def fetch_record(connection: AsyncConnection, serial_number: str) -> RecordRow | None:
    """The record with this normal serial number, certificate included."""
    result = await connection.execute(
        select(records).where(records.c.serial_number == serial_number)
    )
    row = result.one_or_none()
    return None if row is None else _from_row(row, row.certificate)


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
        if page_token:
            try:
                created_at, sequence = _POSITION.unpack(decode_page_token(self.scope, page_token))
                self._after = from_microseconds(created_at), sequence
            except (struct.error, OverflowError):
                raise bad_page_token() from None

    async def fetch(self, connection: AsyncConnection) -> Page[RecordRow]:
        """Reads the page."""
        found = (await connection.execute(self._statement())).all()
        items = found[: self._size]
        token = ""
        if len(found) > self._size:
            last = items[-1]
            position = _POSITION.pack(to_microseconds(last.created_at), last.sequence)
            token = encode_page_token(self.scope, position)
        return Page(tuple(_from_row(row, b"") for row in items), token)

    def _statement(self) -> Select[Any]:
        order = (records.c.created_at, records.c.sequence)
        statement = (
            select(*_LISTED)
            .where(*self._conditions())
            .order_by(*(column.desc() for column in order))
            .limit(self._size + 1)
        )
        if self._after is not None:
            created_at, sequence = self._after
            position = tuple_(
                literal(created_at, records.c.created_at.type),
                literal(sequence, records.c.sequence.type),
            )
            statement = statement.where(tuple_(*order) < position)
        return statement

    def _conditions(self) -> list[ColumnElement[bool]]:
        chosen = self._filter
        conditions: list[ColumnElement[bool]] = []
        for name in FILTERED:  # the most selective first
            value = getattr(chosen, name)
            if value is None:
                continue
            column: ColumnElement[Any] = records.c[name]
            # One index leads; the rest is checked on its rows. Without statistics
            # SQLite would take any, and read a whole role to find one caller.
            conditions.append((column.concat("") if conditions else column) == value)
        created_at, not_after = records.c.created_at, records.c.not_after
        if chosen.created_from is not None:
            conditions.append(created_at >= chosen.created_from)
        before = [at for at in (chosen.created_before, chosen.expires_before) if at is not None]
        if before:
            # What has expired by then was made before then, too: the index starts there.
            conditions.append(created_at < min(before))
        if chosen.expires_from is not None:
            conditions.append(not_after >= chosen.expires_from)
        if chosen.expires_before is not None:
            conditions.append(not_after < chosen.expires_before)
        return conditions


def _as_values(row: RecordRow) -> dict[str, Any]:
    return {
        "serial_number": row.serial_number,
        "certificate": row.certificate,
        "issuer": row.issuer,
        "role": row.role,
        "authenticator": row.authenticator,
        "caller": row.caller,
        "spiffe_id": row.spiffe_id,
        "subject": row.subject,
        "names": row.names,
        "not_before": row.not_before,
        "not_after": row.not_after,
        "created_at": row.created_at,
        "request_id": row.request_id,
    }


def _from_row(row: Row[Any], certificate: bytes) -> RecordRow:
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
    )
