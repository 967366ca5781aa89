"""Times in words."""

from __future__ import annotations

from datetime import datetime, timedelta

__all__ = ["duration_words", "moment_words"]

_UNITS = (
    (timedelta(days=1), "days"),
    (timedelta(hours=1), "hours"),
    (timedelta(minutes=1), "minutes"),
)


def duration_words(duration: timedelta) -> str:
    """A duration in the largest unit of which there are two, such as ``3 days``."""
    for unit, name in _UNITS:
        if duration >= 2 * unit:
            return f"{duration // unit} {name}"
    return f"{int(duration.total_seconds())} seconds"


def moment_words(moment: datetime) -> str:
    """A time in UTC, such as ``2027-01-31T12:00:00Z``."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
