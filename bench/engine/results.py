"""What was measured, and what follows from it: medians, spread, shares, engine.json."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from peers.load import Measured

from engine.sweeps import PROXIED_HSM, BesideSessions, Sweep

__all__ = ["MARK", "MARK_AT_MS", "document"]

# What the service keeps of what its sessions can give, at so many milliseconds.
MARK: Final = 0.9
MARK_AT_MS: Final = 5

Rounds = Mapping[str, Mapping[int, Sequence[Measured]]]


def document(sweeps: Sequence[Sweep], found: Rounds) -> dict[str, Any]:
    """The figures of engine.json: rates per second, latencies in milliseconds."""
    every = {
        sweep.name: {str(value): _summary(rounds) for value, rounds in found[sweep.name].items()}
        for sweep in sweeps
    }
    return {
        "share_at_5_ms": every[PROXIED_HSM.name][str(MARK_AT_MS)]["share"],
        "mark": MARK,
        **every,
    }


def _summary(rounds: Sequence[Measured]) -> dict[str, float]:
    rates = [one.rate for one in rounds]
    rate = statistics.median(rates)
    summary = {
        "rate": round(rate, 1),
        "least": round(min(rates), 1),
        "most": round(max(rates), 1),
        "p50_ms": round(statistics.median(one.p50 for one in rounds) * 1000, 2),
        "p99_ms": round(statistics.median(one.p99 for one in rounds) * 1000, 2),
    }
    give = [one.sessions_give for one in rounds if isinstance(one, BesideSessions)]
    if give:
        capacity = statistics.median(give)
        summary |= {"sessions_give": round(capacity, 1), "share": round(rate / capacity, 3)}
    return summary
