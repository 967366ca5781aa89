"""What one socket serves at this moment, and word of every change to all who stream.

A stream holds an event and no queue: whoever reads slowly misses what lay between,
and costs no memory. Nothing here knows a protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import grpc

from meshmint.agent.identities import Bundle, Identities, Identity, Picture
from meshmint.agent.sockets.refusals import Refusal

__all__ = ["Feed", "View"]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What one socket shows of a picture.

    Attributes:
        identities: Those that the socket serves, the default one first.
        bundles: By trust domain.
    """

    identities: tuple[Identity, ...]
    bundles: Mapping[str, Bundle]

    @classmethod
    def of(cls, picture: Picture, certificates: tuple[str, ...] | None) -> View:
        """What is left of the picture.

        Args:
            picture: All that the agent holds.
            certificates: Names of the certificates served, in order; None: all of them.
        """
        if certificates is None:
            return cls(picture.identities, picture.bundles)
        held = picture.by_name
        served = tuple(held[name] for name in certificates if name in held)
        return cls(served, picture.bundles)

    def shows_the_same(self, other: View) -> bool:
        """Whether nobody would see a difference."""
        return self.identities == other.identities and self.bundles == other.bundles


class Feed:
    """The present view of one socket, for one event loop.

    Args:
        certificates: Names of the certificates served, in order; None: all of them.
        max_streams: How many may listen at once.
    """

    def __init__(self, certificates: tuple[str, ...] | None, max_streams: int) -> None:
        self._certificates = certificates
        self._max_streams = max_streams
        self._listeners: set[asyncio.Event] = set()
        self._view: View | None = None
        self._is_closed = False

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    @property
    def view(self) -> View | None:
        """The present view; None until there is a first one.

        Raises:
            Refusal: The socket is being closed.
        """
        if self._is_closed:
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE, "the agent is stopping: connect again in a moment"
            )
        return self._view

    @contextlib.contextmanager
    def listen(self) -> Iterator[asyncio.Event]:
        """Yields an event that is set now, and whenever there is something new.

        Raises:
            Refusal: Too many are listening.
        """
        if len(self._listeners) >= self._max_streams:
            # The code that SPIFFE_Workload_Endpoint section 6.1 has for shedding load.
            raise Refusal(
                grpc.StatusCode.UNAVAILABLE,
                f"{self._max_streams} streams are open on this socket, which is all that its "
                f"max_streams allows: close some, or raise it",
            )
        news = asyncio.Event()
        news.set()
        self._listeners.add(news)
        try:
            yield news
        finally:
            self._listeners.discard(news)

    async def run(self, identities: Identities) -> None:
        """Follows the agent's pictures until it is cancelled."""
        try:
            async for picture in identities.follow():
                view = View.of(picture, self._certificates)
                # What changes elsewhere wakes nobody here.
                if self._view is None or not view.shows_the_same(self._view):
                    self._view = view
                    self._wake()
        finally:
            # Nobody is left with a picture that grows old.
            self.close()

    def close(self) -> None:
        """Has every stream end."""
        self._is_closed = True
        self._wake()

    def _wake(self) -> None:
        for news in self._listeners:
            news.set()
