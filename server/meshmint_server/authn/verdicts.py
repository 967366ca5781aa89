"""What was lately said of tokens, each for its own short time.

Bounded, the oldest dropped first. Good and bad are kept in two of these, so that
a flood of bad tokens drops nothing that was said of good ones.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from meshmint_server.authn.clock import Clock

__all__ = ["Verdicts"]

T = TypeVar("T")


class Verdicts(Generic[T]):
    """Verdicts by the digest of their token.

    Args:
        limit: How many are kept.
        clock: The clock.
    """

    def __init__(self, limit: int, clock: Clock) -> None:
        self._limit = limit
        self._monotonic = clock.monotonic
        self._kept: OrderedDict[bytes, tuple[float, T]] = OrderedDict()

    def get(self, digest: bytes) -> T | None:
        """What was said of the token; None if nothing was, or too long ago."""
        kept = self._kept.get(digest)
        return kept[1] if kept is not None and self._monotonic() < kept[0] else None

    def keep(self, digest: bytes, verdict: T, until: float) -> None:
        """Keeps it, up to a time on the monotonic clock."""
        self._kept[digest] = (until, verdict)
        self._kept.move_to_end(digest)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
