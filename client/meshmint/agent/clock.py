"""The time of the day, and word of it when somebody sets the clock.

Certificates end by the wall clock, and timers run by the monotonic one; when one of
them jumps, every plan made before is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

__all__ = ["Clock"]

# Below that it is a clock being slewed, or this process not getting its turn.
_STEP = timedelta(seconds=2)
_LOOK_SECONDS = 2.0
# A timer is never trusted for longer, whatever was planned.
_LONGEST_WAIT = 3600.0


class Clock:
    """Tells the time, and waits for a moment of it.

    Args:
        now: The wall clock.
        monotonic: The clock that nobody sets; it may stand still while the machine sleeps.
    """

    def __init__(
        self,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.now = now
        self._monotonic = monotonic
        self._difference = self._measure()
        self._stepped = asyncio.Event()

    def _measure(self) -> timedelta:
        return timedelta(seconds=self.now().timestamp() - self._monotonic())

    def step(self) -> timedelta:
        """By how much the clock was set since the last call; nothing if it was not.

        Whoever waits for a moment looks again.
        """
        difference = self._measure()
        step = difference - self._difference
        # What is less adds up to nothing: it must not be told as a step one day.
        self._difference = difference
        if abs(step) < _STEP:
            return timedelta()
        self._stepped.set()
        self._stepped = asyncio.Event()
        return step

    async def watch(self, tell: Callable[[timedelta], None]) -> None:
        """Looks for steps, for ever, and tells of each."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if step := self.step():
                tell(step)

    async def wait_until(self, moment: datetime, woken: asyncio.Event | None = None) -> None:
        """Returns at the moment, when the clock was set, or when woken; look at the time then."""
        seconds = (moment - self.now()).total_seconds()
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waits = [asyncio.ensure_future(self._stepped.wait())]
        if woken is not None:
            waits.append(asyncio.ensure_future(woken.wait()))
        try:
            await asyncio.wait(
                waits, timeout=min(seconds, _LONGEST_WAIT), return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in waits:
                wait.cancel()
