"""Lengths of time in words, for tables and logs."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["span"]


def span(length: timedelta) -> str:
    """A length of time with its two largest units, such as ``2h 5m``; without a sign."""
    seconds = int(abs(length.total_seconds()))
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m"), (1, "s")):
        count, seconds = divmod(seconds, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count}{unit}")
        elif parts:
            break
    return " ".join(parts[:2])
