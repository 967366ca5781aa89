"""What a writer of records is, and a record as the databases take it. Nothing here connects."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Final, Protocol

from meshmint_server.store.names import searched_names
from meshmint_server.store.rows import RecordRow, ReplyRow
from meshmint_server.store.schema import to_microseconds

__all__ = [
    "COLUMNS",
    "RecordValues",
    "RecordWriter",
    "record_values",
    "reply_values",
    "searched_names",
]

RecordValues = tuple[str, bytes, str, str, str, str, str | None, str, str, int, int, int, str]

# Of the table records, in the order of `record_values`.
COLUMNS: Final = (
    "serial_number",
    "certificate",
    "issuer",
    "role",
    "authenticator",
    "caller",
    "spiffe_id",
    "subject",
    "names",
    "not_before",
    "not_after",
    "created_at",
    "request_id",
)


class RecordWriter(Protocol):
    """Writes batches of records, each in one transaction, one after the other."""

    async def write(self, rows: Sequence[RecordRow]) -> Collection[str]:
        """Returns once `rows`, their replies and the names that they are found by are durable.

        Returns:
            Serial numbers of those that were not recorded, and nothing of them kept,
            because there is another reply with the tag of theirs.

        Raises:
            RowRefused: None was taken, because of what one of them holds.
            StoreUnavailable: Anything else went wrong; where the commit had been asked
                for, it may or may not have happened.
        """

    async def taken(self, tags: Sequence[bytes]) -> Collection[bytes]:
        """Those of some tags, at most 512, that a reply has; as cheap as can be.

        Raises:
            StoreUnavailable: The database does not answer.
        """

    async def close(self) -> None:
        """Closes the connection."""


def record_values(row: RecordRow) -> RecordValues:
    """A record in the order of `COLUMNS`."""
    return (
        row.serial_number,
        row.certificate,
        row.issuer,
        row.role,
        row.authenticator,
        row.caller,
        row.spiffe_id,
        row.subject,
        json.dumps(row.names),
        to_microseconds(row.not_before),
        to_microseconds(row.not_after),
        to_microseconds(row.created_at),
        row.request_id,
    )


def reply_values(reply: ReplyRow) -> tuple[bytes, bytes, int]:
    """Tag, what is sealed, and when it expires."""
    return reply.tag, reply.sealed, to_microseconds(reply.expires_at)
