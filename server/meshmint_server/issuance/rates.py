"""How often callers and roles may ask: token buckets.

A worker knows its own requests only, so it grants its share of each rate.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from meshmint_server.policy import Caller, CallerMatcher, Glob

__all__ = ["Rate", "Rates"]


@dataclass(frozen=True, slots=True)
class Rate:
    """A limit on some requests.

    Attributes:
        callers: Which callers' requests; empty: everybody's.
        roles: Under which roles; empty: all.
        per: Whether each caller has the rate for itself, each role, or all share it.
        rate: Requests per second.
        burst: Requests at once, after a pause.
    """

    callers: tuple[CallerMatcher, ...]
    roles: tuple[Glob, ...]
    per: Literal["caller", "role", "all"]
    rate: float
    burst: float

    def covers(self, caller: Caller, role: str) -> bool:
        """Whether a request falls under the limit."""
        return (not self.roles or any(glob.matches(role) for glob in self.roles)) and (
            not self.callers or any(matcher.matches(caller) for matcher in self.callers)
        )


class _Bucket:
    __slots__ = ("at", "level")

    def __init__(self, level: float, at: float) -> None:
        self.level = level
        self.at = at


class Rates:
    """All limits of one worker.

    Args:
        rates: The limits; a request must keep every one that covers it.
        most: How many buckets are kept; the one not used for longest goes, full again.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        rates: Sequence[Rate],
        *,
        most: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rates = tuple(rates)
        self._most = most
        self._clock = clock
        self._buckets: OrderedDict[object, _Bucket] = OrderedDict()

    def take(self, caller: Caller, role: str) -> float:
        """Counts a request, unless it exceeds a limit.

        Returns:
            0, or the seconds after which there is room again; then nothing was counted.
        """
        now = self._clock()
        taken: list[_Bucket] = []
        delay = 0.0
        for number, rate in enumerate(self._rates):
            if not rate.covers(caller, role):
                continue
            bucket = self._bucket(number, rate, caller, role, now)
            bucket.level = min(rate.burst, bucket.level + (now - bucket.at) * rate.rate)
            bucket.at = now
            if bucket.level < 1:
                delay = max(delay, (1 - bucket.level) / rate.rate)
            taken.append(bucket)
        if not delay:
            for bucket in taken:
                bucket.level -= 1
        return delay

    def _bucket(self, number: int, rate: Rate, caller: Caller, role: str, now: float) -> _Bucket:
        place: object = number
        if rate.per == "caller":
            place = (number, caller.authenticator, caller.subject)
        elif rate.per == "role":
            place = (number, role)
        bucket = self._buckets.get(place)
        if bucket is None:
            bucket = self._buckets[place] = _Bucket(rate.burst, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(place)
        return bucket
