"""Whether a clock can be believed by whoever does what cannot be undone.

Since when something is published or retired decides when everybody is held to know it,
or not to need it. So a clock that jumps, or that the database disagrees with, is not
believed at once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from meshmint_server.errors import PreconditionFailed
from meshmint_server.store import Store

__all__ = ["LARGEST_DIFFERENCE", "Steadiness", "agreed_time"]

log = structlog.get_logger(__name__)

LARGEST_DIFFERENCE: Final = timedelta(minutes=1)
"""Between two clocks that are believed."""

_SECONDS_AFTER_JUMP: Final = 600.0


async def agreed_time(store: Store, now: datetime) -> datetime:
    """The present, as this machine and the database have it.

    For operators, who may be on machines whose clocks nobody minds.

    Raises:
        PreconditionFailed: The two differ.
        StoreUnavailable: The database does not answer.
    """
    there = await store.clock()
    if there is not None and abs(there - now) > LARGEST_DIFFERENCE:
        raise PreconditionFailed(
            f"This machine's clock says {now:%Y-%m-%dT%H:%M:%SZ}, and the database's "
            f"{there:%Y-%m-%dT%H:%M:%SZ}. Set the wrong one, and try again.",
            reason="CLOCKS_DIFFER",
        )
    return now


class Steadiness:
    """What is known of this machine's clock.

    Args:
        store: Whose clock it is compared with.
        monotonic: Seconds that no setting of the clock changes.
        matter: Who waits, for the log.
    """

    def __init__(self, store: Store, monotonic: Callable[[], float], matter: str) -> None:
        self._store = store
        self._monotonic = monotonic
        self._matter = matter
        self._seen: tuple[datetime, float] | None = None
        self._doubts_until = 0.0
        self._ends_from = 0.0

    @property
    def may_end_things(self) -> bool:
        """Whether the clock has been watched for long enough to take back what was published."""
        return self._monotonic() >= self._ends_from

    async def can_believe(self, now: datetime) -> bool:
        """Whether the clock has moved steadily, and agrees with the database's.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        present = self._monotonic()
        before, self._seen = self._seen, (now, present)
        if before is not None:
            jump = now - before[0] - timedelta(seconds=present - before[1])
            if abs(jump) > LARGEST_DIFFERENCE:
                self._doubts_until = present + _SECONDS_AFTER_JUMP
                log.warning(
                    f"the clock jumped: {self._matter} waits to see where it stays",
                    seconds=round(jump.total_seconds()),
                )
        there = await self._store.clock()
        if before is None and there is None:
            # A machine may start with a clock that is only set by and by.
            self._ends_from = present + _SECONDS_AFTER_JUMP
        if there is not None and abs(there - now) > LARGEST_DIFFERENCE:
            if present >= self._doubts_until:  # once, and not at every look
                log.warning(
                    f"{self._matter} waits: this clock and the database's differ",
                    here=now.isoformat(),
                    there=there.isoformat(),
                )
            self._doubts_until = present + _SECONDS_AFTER_JUMP
        return present >= self._doubts_until
