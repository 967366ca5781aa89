"""Replies that are kept for a while: looked up, for many callers at once, and pruned.

They are written with the records that they belong to, by the writers of those. What is
in them is sealed before it comes here, and nobody can open it without the caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, delete, select

from meshmint_server.errors import MeshmintError, StoreUnavailable
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
        self._waiting: list[tuple[bytes, asyncio.Future[bool]]] = []
        self._task: asyncio.Task[None] | None = None

    async def is_taken(self, tag: bytes) -> bool:
        """Whether there is a reply with this tag, expired or not.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((tag, answer))
        if self._task is None:
            self._start()
        return await answer

    def _start(self) -> None:
        self._task = asyncio.create_task(self._work(), name="reply-lookup")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Whatever it has ended of, those who came meanwhile are not left waiting."""
        self._task = None
        if task.cancelled():
            waiting, self._waiting = self._waiting, []
            _fail(waiting, _no_answer())
            return
        if (bug := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "bug: a look-up of replies failed", "exception": bug, "task": task}
            )
        if self._waiting:
            self._start()

    async def _work(self) -> None:
        while self._waiting:
            asked, self._waiting = self._waiting[:_MOST_AT_ONCE], self._waiting[_MOST_AT_ONCE:]
            try:
                taken = await self._fetch([tag for tag, answer in asked if not answer.done()])
            except MeshmintError as fault:
                _fail(asked, fault)
            else:
                for tag, answer in asked:
                    if not answer.done():
                        answer.set_result(tag in taken)
            finally:
                # A bug or a cancelled task must not leave callers waiting.
                _fail(asked, _no_answer())


def _no_answer() -> StoreUnavailable:
    return StoreUnavailable("The store does not answer at present.")


def _fail(asked: Sequence[tuple[bytes, asyncio.Future[bool]]], fault: MeshmintError) -> None:
    for _, answer in asked:
        if not answer.done():
            # One object each: a traceback grows on the exception that is raised.
            answer.set_exception(
                type(fault)(fault.message, reason=fault.reason, retry_after=fault.retry_after)
            )
