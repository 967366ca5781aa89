"""How long a token or key that failed is left alone.

A dead token must not be hammered with logins, and callers must not wait for
attempts that will fail: until it is time, the last fault is simply told again.
"""

from __future__ import annotations

from time import monotonic
from typing import Final

from meshmint_server.keys.key import KeyFault

__all__ = ["Backoff"]

_BACKOFF_FIRST: Final = 0.5
_BACKOFF_MOST: Final = 5.0


class Backoff:
    """When something that failed may be tried again: 0.5 s, doubling up to 5 s."""

    def __init__(self) -> None:
        self._delay = 0.0
        self._until = 0.0
        self._last = KeyFault("")

    def check(self) -> None:
        """Raise the last fault again, without an attempt, while it is too early."""
        left = self._until - monotonic()
        if left > 0:
            raise KeyFault(self._last.detail, reason=self._last.reason, retry_after=left)

    def fail(self, fault: KeyFault) -> None:
        """Note a failure, and wait longer than last time."""
        self._delay = min(_BACKOFF_MOST, self._delay * 2 or _BACKOFF_FIRST)
        self._until = monotonic() + self._delay
        self._last = KeyFault(fault.detail, reason=fault.reason)
        fault.retry_after = self._delay

    def reset(self) -> None:
        """Note a success."""
        self._delay = self._until = 0.0
