"""What the agent holds: certificates and bundles; every change is published as a whole picture.

It decides nothing and waits for nothing; it belongs to the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from types import MappingProxyType

from meshmint.agent.identities import Bundle, Identities, Identity, Picture
from meshmint.agent.kept import KeptCertificate
from meshmint.agent.state import Bundles

__all__ = ["Holdings"]


class Holdings:
    """Certificates by name and bundles by trust domain.

    Attributes:
        identities: Where they are published.
    """

    def __init__(self) -> None:
        self.identities = Identities()
        self._order: tuple[str, ...] = ()
        self._kept: dict[str, KeptCertificate] = {}
        # The same object in every picture, so that readers see at a glance what is new.
        self._identities: dict[str, tuple[KeptCertificate, Identity]] = {}
        self._own = ""
        self._bundles: dict[str, Bundle] = {}

    @property
    def own_trust_domain(self) -> str:
        """The service's own trust domain; empty until it is known."""
        return self._own

    @property
    def bundles(self) -> Bundles:
        """The own trust domain, and every bundle."""
        return self._own, MappingProxyType(dict(self._bundles))

    def certificate(self, name: str) -> KeptCertificate | None:
        """The certificate of that name."""
        return self._kept.get(name)

    def arrange(self, names: Sequence[str], now: datetime) -> None:
        """Sets which certificates there are, in which order; others are let go."""
        self._order = tuple(names)
        self._kept = {name: self._kept[name] for name in names if name in self._kept}
        self._identities = {}
        self.publish(now)

    def hold(self, name: str, kept: KeptCertificate | None, now: datetime) -> None:
        """Replaces a certificate, or lets it go."""
        if kept is None:
            self._kept.pop(name, None)
        else:
            self._kept[name] = kept
        self.publish(now)

    def restore(self, bundles: Bundles, now: datetime) -> None:
        """Takes all the bundles that were kept."""
        self._own, found = bundles
        self._bundles = dict(found)
        self.publish(now)

    def hold_bundle(self, bundle: Bundle, *, is_own: bool, now: datetime) -> bool:
        """Replaces a bundle; False if it says nothing new."""
        if is_own and self._own != bundle.trust_domain:
            # Another service: nothing of the last one's trust may stay.
            self._bundles = {}
            self._identities = {}
            self._own = bundle.trust_domain
        before = self._bundles.get(bundle.trust_domain)
        self._bundles[bundle.trust_domain] = bundle
        if before == bundle and before.sequence == bundle.sequence:
            return False
        self.publish(now)
        return True

    def drop_bundles(self, federated: Sequence[str], now: datetime) -> bool:
        """Lets go of trust domains that the service no longer federates with."""
        gone = self._bundles.keys() - {self._own, *federated}
        for name in gone:
            del self._bundles[name]
        if gone:
            self.publish(now)
        return bool(gone)

    def publish(self, now: datetime) -> None:
        """Publishes the picture of this moment, if it differs from the last one.

        Before the first bundle is there, nobody could tell what to trust: nothing is published.
        """
        if self._own:
            # Of hundreds of certificates that come together nobody looks at each.
            self.identities.announce(lambda: self._picture(now))

    def _picture(self, now: datetime) -> Picture:
        identities: list[Identity] = []
        for name in self._order:
            kept = self._kept.get(name)
            if kept is not None and not kept.is_expired(now):
                identities.append(self._identity(name, kept))
        return Picture(tuple(identities), MappingProxyType(dict(self._bundles)))

    def _identity(self, name: str, kept: KeptCertificate) -> Identity:
        known = self._identities.get(name)
        if known is not None and known[0] is kept:
            return known[1]
        identity = kept.identity(name, _trust_domain(kept, self._own))
        self._identities[name] = kept, identity
        return identity


def _trust_domain(kept: KeptCertificate, own: str) -> str:
    spiffe_id = kept.spiffe_id
    return spiffe_id.removeprefix("spiffe://").partition("/")[0] if spiffe_id else own
