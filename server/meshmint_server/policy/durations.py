"""Durations and times as role documents spell them.

Accepts what Vault accepts: whole seconds, or Go's spelling with days on top
("72h", "1h30m", "90d"). Never a fraction of a second: certificates have none.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["LONGEST", "format_duration", "format_time", "parse_duration", "parse_time"]

LONGEST = timedelta(days=36_525)

_UNIT_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_PART = re.compile(r"([0-9]{1,12})(d|h|m|s)")
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:d|h|m|s))+")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
    r"(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)


def parse_duration(value: object) -> timedelta:
    """Reads a duration: int seconds, "3600", "1h30m", "1d", or a timedelta.

    Raises:
        ValueError: It is none of these, negative, not in whole seconds, or over
            100 years.
    """
    if isinstance(value, timedelta):
        duration = value
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > LONGEST.total_seconds():
            raise ValueError("a duration is at most 100 years")
        duration = timedelta(seconds=value)
    elif isinstance(value, str):
        duration = _parse_text(value.strip())
    else:
        raise ValueError('write a duration as seconds or as text such as "72h" or "1h30m"')
    if duration < timedelta(0):
        raise ValueError("a duration cannot be negative")
    if duration.microseconds:
        raise ValueError("a duration is in whole seconds")
    if duration > LONGEST:
        raise ValueError("a duration is at most 100 years")
    return duration


def _parse_text(text: str) -> timedelta:
    if text.isascii() and text.isdigit() and len(text) <= 12:
        seconds = int(text)
    elif _DURATION.fullmatch(text):
        seconds = sum(int(count) * _UNIT_SECONDS[unit] for count, unit in _PART.findall(text))
    else:
        raise ValueError('write a duration as seconds or as text such as "72h" or "1h30m"')
    if seconds > LONGEST.total_seconds():
        raise ValueError("a duration is at most 100 years")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Writes a duration in the one canonical spelling, such as "1h30m"."""
    seconds = int(duration.total_seconds())
    if not seconds:
        return "0s"
    hours, seconds = divmod(seconds, 3_600)
    minutes, seconds = divmod(seconds, 60)
    parts = ((hours, "h"), (minutes, "m"), (seconds, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def parse_time(value: object) -> datetime:
    """Reads an RFC 3339 time, or a datetime that knows its zone; the result is UTC.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str):
        if not _TIME.fullmatch(value):
            raise ValueError('write a time as RFC 3339, such as "2027-01-31T00:00:00Z"')
        value = datetime.fromisoformat(value.upper())
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError('write a time as RFC 3339, such as "2027-01-31T00:00:00Z"')
    try:
        moment = value.astimezone(UTC).replace(microsecond=0)
    except OverflowError:
        raise ValueError("the time is out of range") from None
    if not 1950 <= moment.year <= 9999:
        raise ValueError("a certificate's times lie between the years 1950 and 9999")
    return moment


def format_time(moment: datetime) -> str:
    """Writes a time as RFC 3339 in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
