"""The tokens of one authenticator that lately held.

Every request passes here, so recalling one does nothing but look. Only tokens
that held get in, and each authenticator has a memory of its own: neither tokens
that were refused nor those of another issuer can push anything out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from meshmint_server.authn.authenticator import Authenticator, Verified
from meshmint_server.authn.clock import Clock
from meshmint_server.policy.caller import Caller

__all__ = ["RememberedTokens"]


@dataclass(frozen=True, slots=True)
class _Remembered:
    """A verified token.

    Attributes:
        caller: Whom it speaks for.
        basis: What that rested on; the answer is void when it is another one.
        expires_at: The token's expiry, seconds since the epoch.
        recall_until: The authenticator's limit, monotonic seconds.
    """

    caller: Caller
    basis: object
    expires_at: float
    recall_until: float


class RememberedTokens:
    """Verified tokens by their digest, the least recently used forgotten first.

    Args:
        authenticator: Who verifies them.
        count: Counts a token that was recalled.
        clock: The clock.
    """

    def __init__(
        self, authenticator: Authenticator, count: Callable[[], object], clock: Clock
    ) -> None:
        self._limit = authenticator.max_remembered
        self._seconds = authenticator.remember_for
        self._basis = authenticator.basis
        self._count = count
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._tokens: OrderedDict[bytes, _Remembered] = OrderedDict()

    def __contains__(self, digest: bytes) -> bool:
        """Whether it held not long ago, though it may have to be verified again."""
        return digest in self._tokens

    def recall(self, digest: bytes) -> Caller | None:
        """Whom the token speaks for; None if that is not known, or must be verified again."""
        token = self._tokens.get(digest)
        if token is None:
            return None
        if self._now() >= token.expires_at:
            del self._tokens[digest]
            return None
        if self._monotonic() >= token.recall_until or self._basis() is not token.basis:
            return None
        self._tokens.move_to_end(digest)
        self._count()
        return token.caller

    def remember(self, digest: bytes, verified: Verified) -> None:
        """Keeps the answer, up to the authenticator's limits."""
        if self._seconds <= 0 or self._limit <= 0:
            return
        as_of = self._monotonic() if verified.as_of is None else verified.as_of
        self._tokens[digest] = _Remembered(
            verified.caller,
            verified.basis,
            verified.caller.expires_at.timestamp(),
            as_of + self._seconds,
        )
        self._tokens.move_to_end(digest)
        if len(self._tokens) > self._limit:
            self._tokens.popitem(last=False)

    def forget(self, digest: bytes) -> None:
        """Drops a token that does not hold any more."""
        self._tokens.pop(digest, None)
