"""What the agent holds at this moment, and word of every change of it.

One task publishes whole pictures; any number of readers follow. A reader that is
slow misses pictures between, and never keeps the publisher waiting. Readers are woken
for what concerns them alone: with hundreds of certificates everything else would cost
as much for each change as for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
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
        sequence: Grows whenever the set changes; the service may count what is no change here,
            so bundles that differ in it alone are equal.
    """

    trust_domain: str
    roots: tuple[x509.Certificate, ...]
    jwt_keys: bytes = b'{"keys":[]}'
    sequence: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Picture:
    """All that the agent holds.

    Attributes:
        identities: In the order of the configuration; those that are not there yet,
            or have expired, are left out.
        bundles: By trust domain: the service's own, and those it federates with.
        by_name: The identities by their names.
    """

    identities: tuple[Identity, ...] = ()
    bundles: Mapping[str, Bundle] = field(default_factory=lambda: MappingProxyType({}))
    by_name: Mapping[str, Identity] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        named = {identity.name: identity for identity in self.identities}
        object.__setattr__(self, "by_name", MappingProxyType(named))


def _whole(picture: Picture) -> object:
    return picture


@dataclass(slots=True, eq=False)
class _Reader:
    """Who is woken when a part of the picture changes."""

    part: Callable[[Picture], object]
    news: asyncio.Event = field(default_factory=asyncio.Event)
    # Nothing that a part is ever equal to.
    last: object = field(default_factory=object)

    def show(self, picture: Picture) -> None:
        part = self.part(picture)
        if part is not self.last and part != self.last:
            self.last = part
            self.news.set()


class Identities:
    """The present picture, for one event loop.

    Args:
        gather_seconds: After readers were woken, they are left in peace for so long: what many
            certificates make of the picture that come together, they see together.
    """

    def __init__(self, gather_seconds: float = 0.05) -> None:
        self._gather_seconds = gather_seconds
        self._picture: Picture | None = None
        self._make: Callable[[], Picture] | None = None
        self._readers: set[_Reader] = set()
        self._is_shown = True
        self._waking: asyncio.TimerHandle | None = None

    @property
    def picture(self) -> Picture | None:
        """The present picture; None until the first one is published."""
        if self._make is not None:
            make, self._make = self._make, None
            picture = make()
            if picture != self._picture:
                self._picture = picture
        return self._picture

    def publish(self, picture: Picture) -> None:
        """Replaces the picture, and wakes those for whom something has changed."""
        self.announce(lambda: picture)

    def announce(self, make: Callable[[], Picture]) -> None:
        """As `publish`, with a picture that is made when the first one looks at it."""
        self._make = make
        self._is_shown = False
        if self._waking is None:
            self._show()

    def _show(self) -> None:
        self._waking = None
        # Without readers there is no event loop, perhaps, and nobody to leave in peace.
        if self._is_shown or not self._readers:
            return
        self._is_shown = True
        picture = self.picture
        assert picture is not None  # noqa: S101 - there is one that was not shown
        for reader in self._readers:
            reader.show(picture)
        loop = asyncio.get_running_loop()
        self._waking = loop.call_later(self._gather_seconds, self._show)

    @contextlib.contextmanager
    def watch(self, part: Callable[[Picture], object] = _whole) -> Iterator[asyncio.Event]:
        """Yields an event that is set if there is a picture, and with every change of a part of it.

        Args:
            part: The part; it is equal as long as nothing has changed that matters.
        """
        reader = _Reader(part)
        if (picture := self.picture) is not None:
            reader.show(picture)
        self._readers.add(reader)
        try:
            yield reader.news
        finally:
            self._readers.discard(reader)

    async def follow(self) -> AsyncIterator[Picture]:
        """Yields the present picture, as soon as there is one, and every newer one."""
        with self.watch() as news:
            while True:
                await news.wait()
                news.clear()
                if (picture := self.picture) is not None:
                    yield picture
