"""Deletes records and revocations of certificates that expired long ago, bit by bit.

It never deletes what has not expired for as long as it is to be kept, nor a revocation
that a CRL still has to tell; and since a wrong clock would have everything expired, it
deletes nothing on the word of a clock that has just jumped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from meshmint_server import telemetry
from meshmint_server.store import CrlKind, CrlRow, ExpiredRevocation, Store

__all__ = ["Tidy"]

log = structlog.get_logger(__name__)

_DUTY = "tidy"
_PART = 250
_CLOCK_TOLERANCE = timedelta(minutes=1)


class Tidy:
    """A duty of the leader: a pass over what is old, whenever one is due.

    Args:
        keep: How long expired certificates stay on record.
        interval: Between two passes.
    """

    def __init__(
        self,
        store: Store,
        *,
        keep: timedelta,
        interval: timedelta,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._keep = keep
        self._interval = interval
        self._clock = clock

    async def run(self) -> None:
        """Makes a pass if one is due and the clock can be believed.

        Raises:
            StoreUnavailable: The rest of the pass is left to the next one.
        """
        if not await self._is_due(self._clock()):
            return
        started = time.perf_counter()
        cutoff = self._clock() - self._keep
        # Records first: a record without its revocation would pass for a good certificate.
        records = await self._tidy_records(cutoff)
        revocations = await self._tidy_revocations(cutoff)
        now = self._clock()
        await self._store.note_duty(_DUTY, now)
        telemetry.TIDY_DONE.set(now.timestamp())
        log.info(
            "expired records tidied away",
            records=records,
            revocations=revocations,
            expired_before=cutoff.isoformat(),
            seconds=round(time.perf_counter() - started, 3),
        )

    async def _is_due(self, now: datetime) -> bool:
        last = await self._store.duty_done_at(_DUTY)
        since = None if last is None else now - last
        if since is not None and timedelta(0) <= since < self._interval:
            return False
        there = await self._store.clock()
        if there is not None and abs(there - now) > _CLOCK_TOLERANCE:
            log.warning(
                "nothing is tidied: this clock and the database's differ",
                here=now.isoformat(),
                there=there.isoformat(),
            )
            return False
        if since is not None and self._interval <= since <= 2 * self._interval:
            return True
        # The first time, or after a long rest, or the clock has jumped: which, nobody can
        # tell, least of all beside SQLite. An operator gets an interval to step in.
        log.warning(
            "nothing is tidied for an interval: there was no pass lately, by this clock",
            last_pass=None if last is None else last.isoformat(),
            now=now.isoformat(),
        )
        await self._store.note_duty(_DUTY, now)
        return False

    async def _tidy_records(self, cutoff: datetime) -> int:
        position: tuple[datetime, int] | None = None
        deleted = 0
        while True:
            part = await self._store.expired_records(cutoff, position, _PART)
            await _delete(self._store.delete_records, part.sequences, "record")
            deleted += len(part.sequences)
            position = part.position
            if position is None:
                return deleted

    async def _tidy_revocations(self, cutoff: datetime) -> int:
        _, issuers = await self._store.load_issuers()
        published = {issuer.name for issuer in issuers if issuer.state.is_published}
        full = {
            (crl.issuer, crl.shard): crl
            for crl in await self._store.list_crls()
            if crl.kind is CrlKind.FULL
        }
        position: tuple[datetime, int] | None = None
        deleted = 0
        while True:
            part = await self._store.expired_revocations(cutoff, position, _PART)
            # An issuer that is not published has no CRLs any more.
            done = [
                revocation.sequence
                for revocation in part
                if revocation.shard[0] not in published
                or _was_told(revocation, full.get(revocation.shard))
            ]
            await _delete(self._store.delete_revocations, done, "revocation")
            deleted += len(done)
            if len(part) < _PART:
                return deleted
            position = part[-1].position


def _was_told(revocation: ExpiredRevocation, newest: CrlRow | None) -> bool:
    """Whether it stood in a full CRL that was made after the expiry (RFC 5280 section 3.3).

    The clock of a replica may be behind and have it revoked after all that; so it counts,
    too, how far the newest full CRL has read.
    """
    return (
        newest is not None
        and newest.this_update > revocation.not_after
        and newest.through >= revocation.sequence
    )


async def _delete(
    delete: Callable[[Sequence[int]], Awaitable[None]], sequences: Sequence[int], kind: str
) -> None:
    if not sequences:
        return
    started = time.perf_counter()
    await delete(sequences)
    telemetry.TIDIED.labels(kind).inc(len(sequences))
    # Whoever issues gets the database for at least as long as this had it.
    await asyncio.sleep(time.perf_counter() - started)
