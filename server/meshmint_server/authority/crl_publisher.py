"""Keeps a fresh CRL published for every shard of every published issuer.

One worker of all replicas does this at a time; should two ever think that they do,
the store takes the CRL of one of them. A CRL is in the store whole or not at all,
and only once its signature was verified.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from meshmint_server import telemetry
from meshmint_server.authority.crl import CrlFrame, build_crl
from meshmint_server.authority.crl_listing import Listing, Part, read_parts
from meshmint_server.authority.crl_schedule import CrlTimes, due
from meshmint_server.authority.issuers import Issuer, IssuerBook
from meshmint_server.errors import KeyUnavailable, Overloaded
from meshmint_server.keys import default_algorithm
from meshmint_server.store import CrlKind, CrlRow, Store

__all__ = ["CrlPublisher"]

log = structlog.get_logger(__name__)

_MILLISECOND: Final = 1000


class CrlPublisher:
    """Makes the CRLs that are due.

    Args:
        issuers: Whose CRLs; their keys sign.
        store: What was revoked, and where CRLs are put.
        times: When one is due.
        url: Base URL under which they are, for issuers that have none of their own.
        clock: The present.
    """

    def __init__(
        self,
        issuers: IssuerBook,
        store: Store,
        times: CrlTimes,
        *,
        url: str | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._issuers = issuers
        self._store = store
        self._times = times
        self._url = url
        self._clock = clock
        self._complaints: dict[str, str] = {}
        # By shard, the sequence up to which nothing was revoked that its CRLs lack.
        self._complete: dict[tuple[str, int], int] = {}
        self._listed: dict[tuple[str, int], Listing] = {}

    async def run(self) -> None:
        """Makes and publishes what is due. A key that does not sign stops its issuer alone.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        published = {
            (row.issuer, row.shard, row.kind): row for row in await self._store.list_crls()
        }
        latest = await self._store.latest_revocation()
        for issuer in self._issuers.published():
            try:
                for shard in range(issuer.crl_shards):
                    full = published.get((issuer.name, shard, CrlKind.FULL))
                    delta = published.get((issuer.name, shard, CrlKind.DELTA))
                    await self._keep(issuer, shard, full, delta, latest)
            except (KeyUnavailable, Overloaded) as error:
                telemetry.CRLS_MADE.labels("failed").inc()
                if self._complaints.get(issuer.name) != error.reason:
                    self._complaints[issuer.name] = error.reason
                    log.warning(
                        "an issuer's CRLs cannot be signed, and will be tried again",
                        issuer=issuer.name,
                        reason=error.reason,
                    )
            else:
                if self._complaints.pop(issuer.name, None):
                    log.info("an issuer's CRLs are signed again", issuer=issuer.name)
        for name in {issuer for issuer, _, _ in published}:
            await self._delete_if_gone(name)

    async def _delete_if_gone(self, name: str) -> None:
        if any(issuer.name == name for issuer in self._issuers.published()):
            return
        # The store decides: what this worker has seen may be a moment old, and numbers
        # must not begin again.
        row = await self._store.get_issuer(name)
        if row is None or not row.state.is_published:
            await self._store.delete_crls(name)
            for shard in [shard for shard in self._listed if shard[0] == name]:
                del self._listed[shard]
            log.info("deleted the CRLs of an issuer that is gone", issuer=name)

    async def _keep(
        self, issuer: Issuer, shard: int, full: CrlRow | None, delta: CrlRow | None, latest: int
    ) -> None:
        """Brings one shard up to date: nothing, a full CRL, a delta, or one after the other."""
        kind = due(full, delta, self._times, self._clock())
        if kind is None and full is not None and await self._has_news(delta or full, latest):
            kind = CrlKind.FULL if self._times.delta_lifetime is None else CrlKind.DELTA
        if kind is CrlKind.FULL:
            full = await self._publish_full(issuer, shard, full, delta)
            if full is not None and delta is not None and self._times.delta_lifetime is None:
                await self._store.delete_crl(issuer.name, shard, CrlKind.DELTA)
        if kind is not None and full is not None and self._times.delta_lifetime is not None:
            # After a full one as well: the delta before builds on another.
            await self._publish_delta(issuer, shard, full, delta, self._times.delta_lifetime)

    async def _has_news(self, newest: CrlRow, latest: int) -> bool:
        """Whether something was revoked that the shard's newest CRL lacks, and it has rested."""
        shard = (newest.issuer, newest.shard)
        if max(newest.through, self._complete.get(shard, 0)) >= latest:
            return False
        if self._clock() < newest.this_update + self._times.rest:
            return False
        if await self._store.latest_revocation(shard) > newest.through:
            return True
        self._complete[shard] = latest
        return False

    async def _publish_full(
        self, issuer: Issuer, shard: int, full: CrlRow | None, delta: CrlRow | None
    ) -> CrlRow | None:
        """Publishes a full CRL in the place of `full`; None if another leader was faster."""
        now = self._now()
        after = _newest_number(full, delta)
        # Read before the revocations: what comes later is the next one's.
        through = await self._store.latest_revocation()
        frame = CrlFrame(
            number=_next_number(after, now),
            base_number=None,
            this_update=now,
            next_update=now + self._times.lifetime,
            url=issuer.crl_url or self._url,
            has_delta=self._times.delta_lifetime is not None,
        )
        listing = await Listing.next(
            frame.number,
            full,
            self._listed.get((issuer.name, shard)),
            store=self._store,
            shard=(issuer.name, shard),
            through=through,
            now=now,
        )
        row = await self._publish(issuer, shard, frame, listing.parts, through=through, after=after)
        if row is not None:
            self._listed[issuer.name, shard] = listing
        return row

    async def _publish_delta(
        self, issuer: Issuer, shard: int, full: CrlRow, delta: CrlRow | None, lifetime: timedelta
    ) -> None:
        """Publishes what was revoked since `full`, expired or not (RFC 5280 section 5.2.4)."""
        now = self._now()
        after = _newest_number(full, delta)
        through = await self._store.latest_revocation()
        frame = CrlFrame(
            number=_next_number(after, now),
            base_number=full.number,
            this_update=now,
            next_update=now + lifetime,
            url=issuer.crl_url or self._url,
            has_delta=True,
        )
        parts = read_parts(self._store, (issuer.name, shard), full.through, through)
        await self._publish(
            issuer, shard, frame, [part async for part in parts], through=through, after=after
        )

    async def _publish(
        self,
        issuer: Issuer,
        shard: int,
        frame: CrlFrame,
        parts: Sequence[Part],
        *,
        through: int,
        after: int,
    ) -> CrlRow | None:
        """Has one CRL signed and publishes it; None if another leader was faster.

        Raises:
            KeyUnavailable: The key does not sign, or made a wrong signature.
            Overloaded: Too many signatures are waiting.
            StoreUnavailable: The database does not answer.
        """
        row = CrlRow(
            issuer=issuer.name,
            shard=shard,
            kind=CrlKind.FULL if frame.base_number is None else CrlKind.DELTA,
            number=frame.number,
            base_number=frame.base_number,
            this_update=frame.this_update,
            next_update=frame.next_update,
            through=through,
            entries=sum(part.size for part in parts),
            document=await _sign(issuer, shard, frame, [part.der for part in parts]),
        )
        is_ours = await self._store.put_crl(row, after=after)
        telemetry.CRLS_MADE.labels("published" if is_ours else "outrun").inc()
        log.info(
            "published a CRL" if is_ours else "another worker has published a CRL meanwhile",
            issuer=issuer.name,
            shard=shard,
            kind=row.kind.value,
            number=row.number,
            entries=row.entries,
            next_update=row.next_update.isoformat(),
        )
        return row if is_ours else None

    def _now(self) -> datetime:
        """The present as a CRL can say it: to the second."""
        return self._clock().replace(microsecond=0)


async def _sign(issuer: Issuer, shard: int, frame: CrlFrame, entries: Sequence[bytes]) -> bytes:
    """The CRL, DER, whose signature was verified."""
    algorithm = default_algorithm(issuer.key.public_key)
    unsigned = await asyncio.to_thread(build_crl, issuer, shard, frame, entries, algorithm)
    signature = await issuer.key.sign(unsigned.data, algorithm)
    public_key = issuer.key.public_key
    if not await asyncio.to_thread(algorithm.is_valid, public_key, signature, unsigned.data):
        log.error("the key made a wrong signature", key=issuer.key.uri)
        raise KeyUnavailable("The signing key made a signature that does not verify.")
    return unsigned.assemble(signature)


def _newest_number(full: CrlRow | None, delta: CrlRow | None) -> int:
    """The highest number in the shard: full and delta share one series. 0 without any."""
    return max((row.number for row in (full, delta) if row is not None), default=0)


def _next_number(after: int, now: datetime) -> int:
    """Higher than the number before.

    The clock's milliseconds, so that it has grown even where a backup was restored.
    """
    return max(after + 1, int(now.timestamp() * _MILLISECOND))
