"""The responder: requests in, answers out, each from the cache if it can be.

What is cached is right, not just fresh: before a worker calls a certificate good once
more it asks the store for new revocations, one question for all who ask at a time, and
calls nothing good when it cannot learn of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from meshmint_server import telemetry
from meshmint_server.authority.issuers import Issuer, IssuerBook
from meshmint_server.authority.ocsp.answer import (
    MALFORMED_REQUEST,
    TRY_LATER,
    UNAUTHORIZED,
    Answer,
    Delegate,
    Revocation,
    sign_answer,
)
from meshmint_server.authority.ocsp.cache import Standing, StandingCache
from meshmint_server.authority.ocsp.feed import RevocationFeed
from meshmint_server.authority.ocsp.request import (
    IssuerId,
    MalformedRequest,
    OcspRequest,
    issuer_ids,
    parse_request,
)
from meshmint_server.errors import Overloaded, StoreUnavailable
from meshmint_server.single_flight import SingleFlight
from meshmint_server.store import Store

__all__ = ["OcspResponder"]

# How many certificates are looked up at a time: what strangers ask for must leave
# connections to the store for those who are to get certificates.
_MOST_LOOKUPS = 32
# A store away for so long, and nobody knows any more whether what was good still is.
_PATIENCE_SECONDS = 10.0
# What is unknown may have been issued a moment later.
_UNKNOWN_LIFETIME = timedelta(minutes=1)


class OcspResponder:
    """Answers for every published issuer that has not expired. One per worker.

    Args:
        issuers: Who is answered for.
        store: Records and revocations.
        lifetime: From thisUpdate to nextUpdate. An answer is given again for the first
            half of it, so whoever gets one has at least the other half.
        max_cached: The most certificates to keep answers for.
        clock: The present, UTC.
        monotonic: Seconds, for how long ago the store was read.

    Attributes:
        feed: Where it learns of revocations; has to be followed.
    """

    def __init__(
        self,
        issuers: IssuerBook,
        store: Store,
        *,
        lifetime: timedelta,
        max_cached: int,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuers = issuers
        self._store = store
        self._lifetime = lifetime
        self._reuse = lifetime / 2
        self._clock = clock
        self._cache = StandingCache(max_cached, self._reuse)
        self.feed = RevocationFeed(
            store,
            on_revoked=self._cache.drop,
            on_lost=self._cache.clear,
            patience=_PATIENCE_SECONDS,
            monotonic=monotonic,
        )
        self._delegates: dict[str, Delegate] = {}
        self._lookups: SingleFlight[int, Standing | None] = SingleFlight()
        self._named: dict[IssuerId, Issuer] = {}
        self._revision = -1

    def appoint(self, delegate: Delegate) -> None:
        """Signs answers for the delegate's issuer with its key from now on."""
        self._delegates[delegate.issuer] = delegate

    async def answer(self, document: bytes) -> Answer:
        """Answers a request in DER, whatever it is: what is wrong is an answer, too."""
        answer = await self._answer(document)
        telemetry.OCSP_ANSWERS.labels(answer.outcome).inc()
        return answer

    async def _answer(self, document: bytes) -> Answer:
        try:
            request = parse_request(document)
        except MalformedRequest:
            return MALFORMED_REQUEST
        now = self._clock()
        issuer = self._issuer_named(request.issuer)
        if issuer is None or now >= issuer.not_after:
            # RFC 5019 section 2.2.3: not for us to say.
            return UNAUTHORIZED
        standing = await self._known(request.serial_number, now)
        if standing is not None and (answer := _made_before(request, standing, now)):
            telemetry.OCSP_CACHE_HITS.inc()
            return answer
        delegate = self._delegates.get(issuer.name)
        if delegate is None or not delegate.may_answer_for(issuer.certificate, now):
            return TRY_LATER
        if standing is None:
            try:
                standing = await self._look_up(request.serial_number)
            except (StoreUnavailable, Overloaded):
                return TRY_LATER
        if standing is None or standing.issuer != issuer.name:
            return self._make_unknown(request, delegate, now)
        return _made_before(request, standing, now) or self._make(request, standing, delegate, now)

    async def _known(self, serial_number: int, now: datetime) -> Standing | None:
        """What the cache has of the certificate. What was good a moment ago is asked again."""
        standing = self._cache.get(serial_number, now, is_current=self.feed.is_current)
        if standing is None or standing.revocation is not None:
            return standing
        await self.feed.catch_up()
        return self._cache.get(serial_number, now, is_current=self.feed.is_current)

    def _issuer_named(self, name: IssuerId) -> Issuer | None:
        if self._revision != self._issuers.revision:
            self._revision = self._issuers.revision
            self._named = {
                one: issuer
                for issuer in self._issuers.published()
                for one in issuer_ids(issuer.certificate)
            }
        return self._named.get(name)

    async def _look_up(self, serial_number: int) -> Standing | None:
        """How the certificate stands; None if there is none on record.

        Raises:
            Overloaded: So many others are being looked up.
            StoreUnavailable: The database does not answer.
        """
        if len(self._lookups) >= _MOST_LOOKUPS and serial_number not in self._lookups:
            raise Overloaded("Too many certificates are being looked up. Ask again.")
        return await self._lookups.run(serial_number, lambda: self._read(serial_number))

    async def _read(self, serial_number: int) -> Standing | None:
        position, as_of = self.feed.position, self._clock()
        standing = await _read_standing(self._store, serial_number, as_of)
        # A revocation that came in the meantime found nothing to drop: what was read may
        # be from before it, and must not stay.
        if standing is not None and self.feed.is_current and self.feed.position == position:
            self._cache.put(serial_number, standing)
        return standing

    def _make(
        self, request: OcspRequest, standing: Standing, delegate: Delegate, now: datetime
    ) -> Answer:
        this_update = now.replace(microsecond=0)
        is_for_all = request.nonce is None
        answer = sign_answer(
            request,
            "revoked" if standing.revocation else "good",
            standing.revocation,
            delegate,
            this_update=this_update,
            next_update=this_update + self._lifetime,
            fresh_until=this_update + self._reuse if is_for_all else None,
        )
        if is_for_all:
            standing.answers[request.issuer] = answer
        return answer

    def _make_unknown(self, request: OcspRequest, delegate: Delegate, now: datetime) -> Answer:
        this_update = now.replace(microsecond=0)
        return sign_answer(
            request,
            "unknown",
            None,
            delegate,
            this_update=this_update,
            next_update=this_update + min(self._lifetime, _UNKNOWN_LIFETIME),
            fresh_until=None,
        )


def _made_before(request: OcspRequest, standing: Standing, now: datetime) -> Answer | None:
    """The answer that others who asked the same were given, if it can be given again."""
    if request.nonce is not None:
        return None
    answer = standing.answers.get(request.issuer)
    return answer if answer is not None and answer.is_fresh_at(now) else None


async def _read_standing(store: Store, serial_number: int, as_of: datetime) -> Standing | None:
    serial = f"{serial_number:x}"
    # First what is final: records are tidied away, and some were never kept.
    revoked = await store.get_revocation(serial)
    if revoked is not None:
        return Standing(revoked.issuer, Revocation(revoked.revoked_at, revoked.reason), as_of)
    record = await store.get_record(serial)
    return None if record is None else Standing(record.issuer, None, as_of)
