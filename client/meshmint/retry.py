"""When a failed call is tried again, and how long to wait before that.

Only what the server or the network calls temporary is tried again. All attempts
and pauses of a call share one deadline, and no pause is begun that would pass
it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from meshmint.errors import (
    AnswerRefused,
    ConfigurationError,
    InvalidArgument,
    MeshmintError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)

__all__ = ["RetryPolicy"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential back-off with full jitter.

    The pause before attempt n+1 is random between 0 and
    ``initial_delay * multiplier**(n-1)``, at most ``max_delay``; where the
    server sent a RetryInfo, that much is waited on top of what it says.

    Attributes:
        max_attempts: How often a call is tried in all; 1 never tries again.
        initial_delay: Longest first pause, seconds.
        max_delay: Longest pause of ours, seconds.
        multiplier: Growth of the longest pause.
    """

    max_attempts: int = 5
    initial_delay: float = 0.1
    max_delay: float = 5.0
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigurationError("max_attempts is at least 1")
        if not (0 <= self.initial_delay <= self.max_delay < math.inf and self.multiplier >= 1):
            raise ConfigurationError(
                "delays are finite, not negative, the first not over the longest, "
                "and the multiplier is at least 1"
            )

    def longest_delay(self, attempt: int) -> float:
        """The longest pause after the given attempt, counted from 1, in seconds."""
        # Bounded first: a float overflows at an exponent that nobody would miss.
        exponent = min(attempt - 1, 64)
        return min(self.max_delay, self.initial_delay * self.multiplier**exponent)


def is_temporary(error: MeshmintError) -> bool:
    """Whether another attempt may fare better."""
    if isinstance(error, ResourceExhausted):
        # Without a reason it is gRPC's own, for a message over the size limit, which never
        # gets smaller.
        return bool(error.reason)
    return isinstance(error, Unavailable)


class Attempts:
    """The attempts of one call, under its deadline."""

    def __init__(
        self,
        policy: RetryPolicy,
        timeout: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if not 0 < timeout < math.inf:
            raise ConfigurationError("a time-out is a number of seconds above 0")
        self._policy = policy
        self._clock = clock
        self._draw = draw
        self._deadline = clock() + timeout
        self._made = 0

    def left(self) -> float:
        """Seconds that are left of the deadline, never less than a millisecond."""
        return max(0.001, self._deadline - self._clock())

    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock() >= self._deadline

    def pause_after(self, error: MeshmintError) -> float | None:
        """Seconds to wait after a failed attempt; None if there is to be no other."""
        self._made += 1
        if self._made >= self._policy.max_attempts or not is_temporary(error):
            return None
        pause = self._draw(0.0, self._policy.longest_delay(self._made))
        pause += error.retry_after or 0.0
        return pause if self._clock() + pause < self._deadline else None


# What a stream does not get over by being opened again.
_LASTING = (
    AnswerRefused,
    ConfigurationError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unimplemented,
)


class Reconnects:
    """The attempts to keep a stream open.

    Until the first message they are those of any call, so that wrong settings are told.
    From then on there is no end of them: whoever watches has something to go on with.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        timeout: float,
        *,
        draw: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._policy = policy
        self._timeout = timeout
        self._draw = draw
        self._first = Attempts(policy, timeout, draw=draw)
        self._has_begun = False
        self._failures = 0

    def patience(self) -> float:
        """Seconds within which a stream that is opened now must send something."""
        return self._timeout if self._has_begun else self._first.left()

    def received(self) -> None:
        """The stream sent something."""
        self._has_begun = True
        self._failures = 0

    def pause_after(self, error: MeshmintError) -> float | None:
        """Seconds to wait after a stream ended; None if it is not to be opened again."""
        if not self._has_begun:
            return self._first.pause_after(error)
        if isinstance(error, _LASTING):
            return None
        self._failures += 1
        longest = self._policy.longest_delay(self._failures)
        # Never quite without a pause, as a stream may end at once again and again.
        return self._draw(longest / 2, longest) + (error.retry_after or 0.0)
