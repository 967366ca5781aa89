"""Replies that are kept for a while: looked up, for many callers at once, and pruned.

They are written with the records that they belong to, by the writers of those. What is
in them is sealed before it comes here, and nobody can open it without the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, select

from meshmint_server.errors import MeshmintError
from meshmint_server.store.batcher import Asked, Batcher, fail
from meshmint_server.store.records import from_row
from meshmint_server.store.rows import KeptReply, ReplyRow
from meshmint_server.store.schema import records, replies

__all__ = [
    "ReplyLookup",
    "delete_expired_replies",
    "delete_reply",
    "fetch_reply",
    "reply_by_tag",
]

Fetch = Callable[[Sequence[bytes]], Awaitable[Collection[bytes]]]

_MOST_AT_ONCE = 512

_REPLY = select(replies.c.tag, replies.c.sealed, replies.c.expires_at, *records.c).join(
    records, records.c.serial_number == replies.c.serial_number
)


def reply_by_tag(tag: bytes) -> Select[Any]:
    """A reply with the columns of its record."""
    return _REPLY.where(replies.c.tag == tag)


def fetch_reply(connection: Connection, tag: bytes) -> KeptReply | None:
    """The reply with this tag, expired or not, with its record."""
    row = connection.execute(reply_by_tag(tag)).one_or_none()
    if row is None:
        return None
    reply = ReplyRow(row.tag, row.sealed, row.expires_at)
    return KeptReply(reply, from_row(row, row.certificate))


def delete_reply(connection: Connection, tag: bytes, now: datetime) -> None:
    """Deletes a reply if it has expired."""
    connection.execute(delete(replies).where(replies.c.tag == tag, replies.c.expires_at <= now))


def delete_expired_replies(connection: Connection, now: datetime, limit: int) -> int:
    """Deletes those of the oldest so many that have expired, and tells how many they were."""
    oldest = select(replies.c.sequence).order_by(replies.c.sequence).limit(limit).subquery()
    done = connection.execute(
        delete(replies).where(
            replies.c.sequence.in_(select(oldest.c.sequence)), replies.c.expires_at <= now
        )
    )
    return done.rowcount


class ReplyLookup:
    """Tells which tags are taken, those that are asked for during one look-up in the next.

    Nearly every request with an id comes for the first time: what it costs to learn that
    is what the promise costs.

    Args:
        fetch: Those of some tags that are taken.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._batcher: Batcher[bytes, bool] = Batcher(
            "reply-lookup", self._look_up, most=_MOST_AT_ONCE
        )

    async def is_taken(self, tag: bytes) -> bool:
        """Whether there is a reply with this tag, expired or not.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        return await self._batcher.ask(tag)

    async def _look_up(self, batch: Sequence[Asked[bytes, bool]]) -> None:
        try:
            taken = await self._fetch([asked.question for asked in batch])
        except MeshmintError as fault:
            fail(batch, fault)
        else:
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_result(asked.question in taken)
