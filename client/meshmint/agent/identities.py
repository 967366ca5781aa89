"""What the agent holds at this moment, and word of every change of it.

One task publishes whole pictures; any number of readers follow. A reader that is
slow misses pictures between, and never keeps the publisher waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from cryptography import x509

from meshmint.keys import PrivateKey

__all__ = ["Bundle", "Identities", "Identity", "Picture"]


@dataclass(frozen=True, slots=True)
class Identity:
    """One certificate of the agent, with its key.

    Attributes:
        name: Its name in the agent's configuration.
        spiffe_id: The SPIFFE ID, if it is an X509-SVID.
        certificate: The certificate.
        chain: Its issuers upwards, root left out.
        key: The private key.
        trust_domain: The trust domain whose bundle belongs to it.
    """

    name: str
    spiffe_id: str | None
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)
    trust_domain: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """The roots of one trust domain.

    Attributes:
        trust_domain: Its name, such as "example.org".
        roots: The certificates to trust.
        jwt_keys: The keys to trust for JWT-SVIDs: a JWK set, UTF-8 JSON.
        sequence: Grows whenever the set changes.
    """

    trust_domain: str
    roots: tuple[x509.Certificate, ...]
    jwt_keys: bytes = b'{"keys":[]}'
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Picture:
    """All that the agent holds.

    Attributes:
        identities: In the order of the configuration; those that are not there yet,
            or have expired, are left out.
        bundles: By trust domain: the service's own, and those it federates with.
    """

    identities: tuple[Identity, ...] = ()
    bundles: Mapping[str, Bundle] = field(default_factory=lambda: MappingProxyType({}))


class Identities:
    """The present picture, for one event loop."""

    def __init__(self) -> None:
        self._picture: Picture | None = None
        self._changed = asyncio.Event()

    @property
    def picture(self) -> Picture | None:
        """The present picture; None until the first one is published."""
        return self._picture

    def publish(self, picture: Picture) -> None:
        """Replaces the picture, and wakes everybody who follows."""
        self._picture = picture
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[Picture]:
        """Yields the present picture, as soon as there is one, and every newer one."""
        seen: Picture | None = None
        while True:
            changed = self._changed
            if self._picture is None or self._picture is seen:
                await changed.wait()
                continue
            seen = self._picture
            yield seen
