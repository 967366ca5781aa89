"""When to send what has come to be sent: at once, or together with what comes next.

A message costs both processes more than a fast signature, so that under load they had
better be few. Yet nobody may wait for company that does not come. How long one turn of
the event loop takes tells which it is: a loop with nothing else to do is round in some
microseconds, a busy one has more requests at hand, and on their way here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

__all__ = ["Gathering"]

# Measured on two cores: a client alone sees turns of 10 microseconds, four clients some 100,
# 64 some 300 with a wide spread.
_BUSY_TURN: Final = 0.000_25
_IDLE_TURN: Final = 0.000_05
_NAP_SECONDS: Final = 0.002
_LONGEST_SECONDS: Final = 0.02
# So many turns weigh in the usual one.
_MEMORY: Final = 16


class Gathering:
    """Calls `send` soon after `begin`: when the event loop is idle, or enough has come.

    Args:
        send: Sends what there is by then.
        clock: Seconds.

    Attributes:
        is_on: Whether what comes is still waited for.
    """

    def __init__(self, send: Callable[[], None], clock: Callable[[], float] = monotonic) -> None:
        self._send = send
        self._clock = clock
        self._usual_turn = 0.0
        self._ends = 0.0
        self._nap: asyncio.TimerHandle | None = None
        self.is_on = False

    def begin(self) -> None:
        """The first of what is to be sent next has come."""
        asyncio.get_running_loop().call_soon(self._decide, self._clock())

    def end(self) -> None:
        """Enough has come: sends it."""
        self.is_on = False
        if self._nap is not None:
            self._nap.cancel()
            self._nap = None
        self._send()

    def _decide(self, turn_began: float) -> None:
        now = self._clock()
        self._usual_turn += (now - turn_began - self._usual_turn) / _MEMORY
        if self._usual_turn < _BUSY_TURN:
            self._send()
        elif not self.is_on:
            self.is_on = True
            self._ends = now + _LONGEST_SECONDS
            self._sleep()

    def _sleep(self) -> None:
        self._nap = asyncio.get_running_loop().call_later(_NAP_SECONDS, self._wake)

    def _wake(self) -> None:
        asyncio.get_running_loop().call_soon(self._look, self._clock())

    def _look(self, turn_began: float) -> None:
        if not self.is_on:
            return
        now = self._clock()
        if now - turn_began < _IDLE_TURN or now >= self._ends:
            self.end()
        else:
            self._sleep()
