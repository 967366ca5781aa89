"""What was found out of certificates lately, and the answers that were made of it.

Bounded, the least asked for going first. Holds nothing of serial numbers that nobody
has: a stranger who makes some up must not push out what others ask for.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from meshmint_server.authority.ocsp.answer import Answer, Revocation
from meshmint_server.authority.ocsp.request import IssuerId

__all__ = ["Standing", "StandingCache"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How a certificate of ours stands.

    Attributes:
        issuer: Name of the issuer that signed it.
        revocation: None if it is not revoked.
        as_of: When that was read.
        answers: Those made of it, by how the issuer was named.
    """

    issuer: str
    revocation: Revocation | None
    as_of: datetime
    answers: dict[IssuerId, Answer] = field(default_factory=dict)


class StandingCache:
    """Standings by serial number.

    Args:
        limit: The most certificates to keep something of.
        lifetime: How long what was read is used.
    """

    def __init__(self, limit: int, lifetime: timedelta) -> None:
        self._limit = limit
        self._lifetime = lifetime
        self._standings: OrderedDict[int, Standing] = OrderedDict()

    def get(self, serial_number: int, now: datetime, *, is_current: bool) -> Standing | None:
        """What may still be said.

        Args:
            serial_number: Of the certificate.
            now: A reading before `as_of` (the clock was set back) ends it as well.
            is_current: Whether every revocation was taken out; if not, only what is
                revoked is still known: it stays revoked.
        """
        standing = self._standings.get(serial_number)
        if (
            standing is None
            or not standing.as_of <= now < standing.as_of + self._lifetime
            or not (is_current or standing.revocation)
        ):
            return None
        self._standings.move_to_end(serial_number)
        return standing

    def put(self, serial_number: int, standing: Standing) -> None:
        """Keeps what was read."""
        self._standings[serial_number] = standing
        self._standings.move_to_end(serial_number)
        if len(self._standings) > self._limit:
            self._standings.popitem(last=False)

    def drop(self, serial_number: int) -> None:
        """Forgets what was known of a certificate."""
        self._standings.pop(serial_number, None)

    def clear(self) -> None:
        """Forgets everything."""
        self._standings.clear()
