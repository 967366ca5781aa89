"""When the next CRL is due. Pure: a reading of the clock and what is published decide."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from meshmint_server.store import CrlKind, CrlRow

__all__ = ["CrlTimes", "due"]


@dataclass(frozen=True, slots=True)
class CrlTimes:
    """How long CRLs live and when they are replaced.

    Attributes:
        lifetime: From thisUpdate to nextUpdate of a full CRL.
        interval: How often there is a new full one at least; much shorter.
        delay: How soon a revocation shows up.
        delta_lifetime: From thisUpdate to nextUpdate of a delta; None: there are none.
    """

    lifetime: timedelta
    interval: timedelta
    delay: timedelta
    delta_lifetime: timedelta | None = None

    @property
    def rest(self) -> timedelta:
        """The shortest time between two CRLs of a shard: revocations are gathered.

        Half of the delay; the other half is for noticing, building and signing.
        """
        return self.delay / 2


def due(
    full: CrlRow | None, delta: CrlRow | None, times: CrlTimes, now: datetime
) -> CrlKind | None:
    """Which CRL of a shard the clock asks for, whatever was revoked; None if none.

    A clock that was set back shows in a thisUpdate that is yet to come: verifiers refuse
    such a CRL. One that was set forward shows in a nextUpdate that has passed.
    """
    if full is None or full.this_update > now:
        return CrlKind.FULL
    if now >= min(full.this_update + times.interval, full.next_update):
        return CrlKind.FULL
    if times.delta_lifetime is None:
        # A full one that does not point to it, so that the delta can go.
        return None if delta is None else CrlKind.FULL
    if delta is None or delta.base_number != full.number or delta.this_update > now:
        return CrlKind.DELTA
    if now >= min(delta.this_update + times.delta_lifetime / 2, delta.next_update):
        return CrlKind.DELTA
    return None
