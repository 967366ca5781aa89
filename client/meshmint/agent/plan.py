"""When to renew, when to try again, and how loud to be: pure, with clock and chance as arguments.

Nothing here sleeps, logs or asks the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum

from meshmint.agent.config import RenewalSettings, WindowSettings

__all__ = ["Loudness", "Validity", "loudness", "pause", "renewal_time"]

# Neither window nor earliest moment keeps a certificate for longer.
LATEST_SHARE = 0.9
# One lifetime of an hour is tried at least every three minutes, and more often near its end:
# after an outage those come first who have least time left.
_PAUSES_IN_A_LIFE = 20
_PAUSES_IN_WHAT_IS_LEFT = 10
_SHORTEST_LONGEST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_FIRST_PAUSE = 1.0
# While there is nothing to lose any more, and people wait.
_PAUSE_WITHOUT = 30.0
# Of what a service asks to be left alone for.
_LONGEST_ASKED_FOR = 60.0


@dataclass(frozen=True, slots=True)
class Validity:
    """How long a certificate is good for, as the agent counts.

    Attributes:
        start: When the agent got it, or when it begins, if that is later or more certain:
            services back-date certificates, and what was over before cannot be used.
        end: When it ends.
    """

    start: datetime
    end: datetime

    @classmethod
    def of(
        cls, not_before: datetime, not_after: datetime, obtained_at: datetime, now: datetime
    ) -> Validity:
        """Counts from when it was obtained, unless a clock was wrong then."""
        is_plausible = not_before <= obtained_at <= min(now, not_after)
        return cls(obtained_at if is_plausible else not_before, not_after)

    @property
    def length(self) -> timedelta:
        """From start to end."""
        return self.end - self.start

    def share_left(self, now: datetime) -> float:
        """1 at the start, 0 from the end on."""
        if self.length <= timedelta():
            return 0.0
        return min(1.0, max(0.0, (self.end - now) / self.length))


def renewal_time(validity: Validity, settings: RenewalSettings, chance: float) -> datetime:
    """When to renew.

    Args:
        validity: The certificate's.
        settings: Fraction, jitter, earliest moment and window.
        chance: From 0 to 1, drawn once for each certificate, so that a plan made again is the same.
    """
    share = settings.fraction + settings.jitter * (2 * chance - 1)
    moment = validity.start + validity.length * share
    latest = validity.start + validity.length * LATEST_SHARE
    if settings.not_before is not None:
        moment = max(moment, settings.not_before)
    if settings.window is not None:
        moment = _in_window(moment, settings.window, chance)
    return min(moment, latest).astimezone(UTC)


def _in_window(moment: datetime, window: WindowSettings, chance: float) -> datetime:
    """The moment, if it lies in the window, or else somewhere in the next one."""
    local = moment.astimezone(UTC if window.zone == "utc" else None)
    for day in (-1, 0, 1, 2):
        date = local.date() + timedelta(days=day)
        start = datetime.combine(date, window.start, local.tzinfo)
        end = datetime.combine(date, window.end, local.tzinfo)
        if end <= start:
            end += timedelta(days=1)
        if local < start:
            # Not all at its first minute.
            return start + (end - start) * chance
        if local < end:
            return moment
    return moment


def pause(
    failures: int,
    validity: Validity | None,
    now: datetime,
    draw: Callable[[float, float], float],
    *,
    asked_for: float | None = None,
) -> timedelta:
    """How long to wait after a failed attempt: full jitter below a limit that doubles.

    Args:
        failures: How many attempts in a row have failed, from 1.
        validity: That of the certificate at hand; None if there is none.
        now: The present moment.
        draw: Draws a number between two.
        asked_for: Seconds that the service wants to be left alone for; they are waited on top.
    """
    limit = min(_longest_pause(validity, now), _FIRST_PAUSE * 2.0 ** min(failures - 1, 32))
    return timedelta(seconds=draw(0.0, limit) + min(asked_for or 0.0, _LONGEST_ASKED_FOR))


def _longest_pause(validity: Validity | None, now: datetime) -> float:
    if validity is None or not validity.share_left(now):
        return _PAUSE_WITHOUT
    longest = validity.length.total_seconds() / _PAUSES_IN_A_LIFE
    longest = min(_LONGEST_PAUSE, max(_SHORTEST_LONGEST_PAUSE, longest))
    left = (validity.end - now).total_seconds()
    return min(longest, max(_PAUSE_WITHOUT, left / _PAUSES_IN_WHAT_IS_LEFT))


class Loudness(IntEnum):
    """How bad it is that a certificate was not renewed."""

    NOTICE = 0
    WARNING = 1
    URGENT = 2
    EXPIRED = 3


def loudness(validity: Validity | None, now: datetime) -> Loudness:
    """Grows as the life that is left shrinks: below a quarter, below a tenth, nothing."""
    if validity is None:
        return Loudness.URGENT
    left = validity.share_left(now)
    if left <= 0:
        return Loudness.EXPIRED
    if left <= 0.1:
        return Loudness.URGENT
    return Loudness.WARNING if left <= 0.25 else Loudness.NOTICE
