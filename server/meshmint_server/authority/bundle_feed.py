"""The trust bundle as it changes, for as many watchers as one worker can bear.

Whoever watches gets the whole bundle and then only the newest one: nothing is
queued, so a slow reader costs no memory and misses nothing that still counts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server import telemetry
from meshmint_server.authority.federation import FederatedBundles
from meshmint_server.authority.issuers import IssuerBook
from meshmint_server.authority.jwt_key_book import JwtKeyBook
from meshmint_server.errors import IssuerNotReady, NotFound, Overloaded, Unavailable
from meshmint_server.spiffe import TrustBundle, TrustDomain

__all__ = ["TrustBundleFeed"]

# What is sent to those who are turned away: long enough for other workers to be tried.
_RETRY_SECONDS = 5.0


class TrustBundleFeed:
    """The trust bundle of the service's own trust domain, and those of others by name.

    Args:
        issuers: Where the service's own roots come from.
        federated: The bundles of other trust domains.
        trust_domain: The service's own.
        refresh_hint: What its bundle tells those who poll.
        limit: The most watchers at a time.
        jwt_keys: The service's own keys for JWT-SVIDs; it wakes those who wait for `issuers`.
    """

    def __init__(
        self,
        issuers: IssuerBook,
        federated: FederatedBundles,
        trust_domain: TrustDomain,
        *,
        refresh_hint: timedelta,
        limit: int,
        jwt_keys: JwtKeyBook | None = None,
    ) -> None:
        self._issuers = issuers
        self._federated = federated
        self._trust_domain = trust_domain
        self._refresh_hint = refresh_hint
        self._limit = limit
        self._jwt_keys = jwt_keys
        self._watchers = 0
        self._is_closed = False
        self._bundle: TrustBundle | None = None

    @property
    def federated_trust_domains(self) -> tuple[TrustDomain, ...]:
        """The other trust domains whose bundles can be watched."""
        return self._federated.trust_domains

    def current(self) -> TrustBundle:
        """The service's own bundle now; the very same object while it stays the same.

        Raises:
            IssuerNotReady: There is no root yet. An empty bundle would tell its readers
                to trust nobody, which is not what a service without issuers knows.
            Unavailable: Roots and keys were just changed, at the start of this worker.
        """
        sequence = self._issuers.revision
        keys = self._jwt_keys
        # Roots and keys are read one after the other, and one number stands for both: until
        # they are of the same revision, what was told before stands.
        is_whole = keys is None or keys.revision == sequence
        if not is_whole and self._bundle is None:
            raise Unavailable(
                "The trust bundle is being read. Try again.", reason="BUNDLE_CHANGING"
            )
        if is_whole and (self._bundle is None or self._bundle.sequence != sequence):
            pems = [root for one in self._issuers.published() for root in one.roots_pem]
            self._bundle = TrustBundle(
                self._trust_domain,
                tuple(_der(pem) for pem in dict.fromkeys(pems)),
                sequence,
                self._refresh_hint,
                () if keys is None else keys.published,
            )
        assert self._bundle is not None  # noqa: S101 -- as it was, or just made
        if not self._bundle.roots:
            raise IssuerNotReady(
                "There is no issuer yet, and so no trust bundle. An operator makes one with "
                "'meshmintd ca csr' and 'meshmintd ca import'."
            )
        return self._bundle

    async def watch(
        self, trust_domain: TrustDomain | None = None
    ) -> AsyncGenerator[TrustBundle, None]:
        """A bundle, and every newer one, until the feed is closed.

        Args:
            trust_domain: Whose; None for the service's own.

        Raises:
            NotFound: The service does not federate with that trust domain.
            Overloaded: There are as many watchers as there may be.
            IssuerNotReady: There is no root.
            Unavailable: The feed is closed: this worker is about to end. Or the bundle
                was not fetched yet, or is being read.
        """
        is_own = trust_domain in (None, self._trust_domain)
        if not is_own and trust_domain not in self._federated.trust_domains:
            raise NotFound(
                f"This service does not federate with {trust_domain}.", reason="NOT_FEDERATED"
            )
        if self._watchers >= self._limit:
            raise Overloaded(
                "This worker has as many watchers as it may have. Retry: another may have room.",
                reason="TOO_MANY_WATCHERS",
                retry_after=_RETRY_SECONDS,
            )
        self._watchers += 1
        telemetry.WATCHERS.inc()
        try:
            seen: TrustBundle | None = None
            while True:
                # Before the look, so that no change falls in between.
                changed = self._issuers.changed if is_own else self._federated.changed
                if self._is_closed:
                    raise Unavailable("The server is draining. Connect again.", reason="DRAINING")
                bundle = (
                    self.current()
                    if trust_domain is None or is_own
                    else self._federated.get(trust_domain)
                )
                if bundle is not seen:
                    seen = bundle
                    yield bundle
                else:
                    await changed.wait()
        finally:
            self._watchers -= 1
            telemetry.WATCHERS.dec()

    def close(self) -> None:
        """Ends every watch, and lets none begin."""
        self._is_closed = True
        self._issuers.wake()
        self._federated.wake()


def _der(pem: str) -> bytes:
    return x509.load_pem_x509_certificate(pem.encode("ascii")).public_bytes(Encoding.DER)
