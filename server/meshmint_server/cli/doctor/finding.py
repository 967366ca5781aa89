"""What a check found: one line for people, one object for programs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Level", "error", "ok", "warning"]


class Level(StrEnum):
    """How bad it is. An error keeps the service from issuing, or makes its key unsafe."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at, such as ``issuer issuer-1``.
        message: How it is, in plain words. Never a secret.
        advice: What to do; empty if nothing is to be done.
    """

    level: Level
    subject: str
    message: str
    advice: str = ""


def ok(subject: str, message: str) -> Finding:
    """All is well, or there is nothing to be done."""
    return Finding(Level.OK, subject, message)


def warning(subject: str, message: str, advice: str) -> Finding:
    """It works, but is not as it should be."""
    return Finding(Level.WARNING, subject, message, advice)


def error(subject: str, message: str, advice: str) -> Finding:
    """It does not work, or must not go on."""
    return Finding(Level.ERROR, subject, message, advice)
