"""When a service that throttles or fails is asked again.

What it asks for (Retry-After) it gets. Where it just fails, a few times in a
row, it is left alone for a pause that doubles up to a few seconds; then one
request is let through, and all others are answered at once until that one has
shown how things stand. So a service that hangs has one request of ours, and is
back with us seconds after it is back.
"""

from __future__ import annotations

from meshmint_server.authn.clock import Clock

__all__ = ["BackOff"]

TOLERATED_FAILURES = 2
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 5.0


class BackOff:
    """The back-off of one service.

    Args:
        trial: Seconds after which a request has ended in any case.
        clock: The clock.
    """

    def __init__(self, *, trial: float, clock: Clock) -> None:
        self._trial = trial
        self._monotonic = clock.monotonic
        self._failures = 0
        self._pause = FIRST_PAUSE
        self._round = 0
        self._resume_at = float("-inf")
        self._is_trying = False

    def wait(self) -> float:
        """Seconds after which to ask; zero or less if it may be asked now."""
        left = self._resume_at - self._monotonic()
        return min(left, FIRST_PAUSE) if self._is_trying else left

    def begin(self) -> int:
        """Notes that a request begins, and returns its round, to be told how it went.

        The first one after a pause keeps the others back until it is over.
        """
        if self._resume_at > float("-inf"):
            self._hold(self._trial)
            self._is_trying = True
        return self._round

    def succeeded(self, round_: int) -> None:
        """Notes an answer. One asked for before the last pause says nothing of now."""
        if round_ == self._round:
            self._failures = 0
            self._pause = FIRST_PAUSE
            self._resume_at = float("-inf")

    def failed(self, round_: int, pause: float | None = None) -> None:
        """Notes a failure, and the pause that the service asked for, if it did."""
        if round_ != self._round:
            # Of those that were under way at the last pause only a longer one is news.
            if pause is None or self._monotonic() + pause <= self._resume_at:
                return
        elif pause is None:
            self._failures += 1
            if self._failures <= TOLERATED_FAILURES:
                self._resume_at = float("-inf")
                return
            pause, self._pause = self._pause, min(self._pause * 2, LONGEST_PAUSE)
        self._hold(pause)

    def _hold(self, seconds: float) -> None:
        self._round += 1
        self._resume_at = self._monotonic() + seconds
        self._is_trying = False
