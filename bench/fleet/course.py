"""What happened in a run, second by second, counted for the whole fleet."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from itertools import accumulate

__all__ = ["BIN", "STEP", "Course"]

# Seconds of a step, and of what one value of a course stands for.
STEP = 0.1
BIN = 10.0
_STEPS_IN_A_BIN = round(BIN / STEP)


class Course:
    """A run as it is written down.

    Args:
        one_in: One workload stands for so many; every figure told is for all of them.

    Attributes:
        waits: How many answered requests had waited for how many steps.
    """

    def __init__(self, one_in: int = 1) -> None:
        self._one_in = one_in
        self._bins: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._levels: defaultdict[str, defaultdict[int, int]] = defaultdict(
            lambda: defaultdict(int)
        )
        self._lapses: list[tuple[float, float]] = []
        self._length = 0
        self._awaited = 0
        self._served: list[float] = []
        self.waits: Counter[int] = Counter()

    # --- written ---------------------------------------------------------------------------

    def count(self, what: str, step: int) -> None:
        """Something happened at a step."""
        self._bins[what][step // _STEPS_IN_A_BIN] += 1

    def lapsed(self, start: float, end: float) -> None:
        """A workload ran without a good certificate, from one second to another."""
        self._lapses.append((start, end))
        # From the bin after the one that it began in, so that moments between two bins are none.
        self._bins["lapse"][math.ceil(start / BIN)] += 1
        self._bins["lapse"][math.ceil(end / BIN)] -= 1

    def look(self, step: int, **levels: int) -> None:
        """How high things stand after a step; the highest of a bin counts."""
        index = step // _STEPS_IN_A_BIN
        for name, level in levels.items():
            found = self._levels[name]
            found[index] = max(found[index], level)

    def end(self, step: int) -> None:
        """The run ends before that step."""
        self._length = step // _STEPS_IN_A_BIN

    def await_(self, workloads: int) -> None:
        """An event has left so many in want of a certificate."""
        self._awaited = workloads

    def served(self, seconds: float) -> None:
        """One of them has it, so long after the event."""
        self._served.append(seconds)

    # --- read ------------------------------------------------------------------------------

    def total(self, what: str) -> int:
        """How often something happened in all."""
        return sum(self._bins[what].values()) * self._one_in

    def rates(self, what: str) -> list[float]:
        """How often a second it happened, for each bin."""
        found = self._bins[what]
        return [found[index] * self._one_in / BIN for index in range(self._length)]

    def levels(self, what: str) -> list[int]:
        """How high it stood, for each bin."""
        found = self._levels[what]
        return [found[index] * self._one_in for index in range(self._length)]

    def without(self) -> list[int]:
        """How many workloads ran without a good certificate at the start of each bin."""
        changes = self._bins["lapse"]
        return [
            level * self._one_in
            for level in accumulate(changes[index] for index in range(self._length))
        ]

    def lapses(self, start: float = -math.inf) -> int:
        """How many began to run without a good certificate, from a second on."""
        return sum(began >= start for began, _ in self._lapses) * self._one_in

    def all_valid_at(self) -> float:
        """The second from which on no workload runs without a good certificate."""
        return max((end for _, end in self._lapses), default=0.0)

    def wait(self, share: float) -> float:
        """Seconds that so large a share of the answered requests waited at most."""
        left = share * self.waits.total()
        for steps in sorted(self.waits):
            left -= self.waits[steps]
            if left <= 0:
                return steps * STEP
        return 0.0

    @property
    def awaited(self) -> int:
        """How many an event left in want of a certificate."""
        return self._awaited * self._one_in

    def served_after(self, share: float) -> float | None:
        """Seconds until so large a share of them had it; None: they had not until the end."""
        needed = math.ceil(share * self._awaited)
        if needed == 0:
            return 0.0
        return self._served[needed - 1] if needed <= len(self._served) else None
