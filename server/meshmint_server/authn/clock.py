"""The two clocks of authentication, so that a test can turn their hands."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Clock"]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where the time comes from.

    Attributes:
        now: Seconds since the epoch, UTC; what a token's times are held against.
        monotonic: Seconds that never jump; what caches and cool-downs count in.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
