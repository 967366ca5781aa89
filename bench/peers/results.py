"""What was measured, and what follows from it: medians, spread, ratios, bench.json."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from peers.load import Measured
from peers.workload import Work

__all__ = ["MARKS", "OURS", "OURS_SHARED", "PEER", "STREAM", "UNARY", "Results", "Sample"]

PEER: Final = "openbao"
OURS: Final = "meshmint-sqlite"
OURS_SHARED: Final = "meshmint-postgresql"
# One stream after the other on each connection, or one unary request after the other.
STREAM: Final = "stream"
UNARY: Final = "unary"
# The least that each ratio should be: the first four to OpenBao, the others to our own unary rate.
MARKS: Final = {
    "issue_recorded": 2.0,
    "sign_recorded": 2.0,
    "issue_no_store": 1.5,
    "sign_no_store": 1.5,
    "issue_stream": 2.0,
    "sign_stream": 2.0,
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run against one server.

    Attributes:
        cpu: CPU seconds that the server used for 1,000 certificates.
    """

    measured: Measured
    cpu: float


def _samples() -> dict[str, list[Sample]]:
    return defaultdict(list)


@dataclass(slots=True)
class Results:
    """All runs of one comparison.

    Attributes:
        top: By work, requests in flight and server: as fast as the server answers.
        paced: By work and server: at half of Meshmint's best rate.
        pace: By work, that rate.
        streams: By operation, and by whether asked over streams: as fast as OURS answers.
        floor: By kind: handlers that do only what no issuer can leave out (`peers.floor`).
        memory: By server, bytes resident before the load and after it.
    """

    top: dict[tuple[str, int], dict[str, list[Sample]]] = field(
        default_factory=lambda: defaultdict(_samples)
    )
    paced: dict[str, dict[str, list[Sample]]] = field(default_factory=lambda: defaultdict(_samples))
    pace: dict[str, float] = field(default_factory=dict)
    streams: dict[str, dict[str, list[Sample]]] = field(
        default_factory=lambda: defaultdict(_samples)
    )
    floor: dict[str, list[Sample]] = field(default_factory=_samples)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)

    def best_rates(self, work: Work, server: str) -> list[float]:
        """Rates by round, with so many requests in flight as give the best median."""
        servers = self.top[work.name, self.best_in_flight(work, server)]
        return [sample.measured.rate for sample in servers[server]]

    def best_in_flight(self, work: Work, server: str) -> int:
        """With how many requests in flight a server's median is best."""
        medians = {
            in_flight: statistics.median(sample.measured.rate for sample in servers[server])
            for (name, in_flight), servers in self.top.items()
            if name == work.name and server in servers
        }
        return max(medians, key=medians.__getitem__)

    def ratio(self, work: Work, server: str = OURS) -> dict[str, float]:
        """Best rate of ours to the best of the peer's: of the medians, and the spread by round."""
        return _ratio(self.best_rates(work, server), self.best_rates(work, PEER))

    def stream_ratio(self, operation: str) -> dict[str, float]:
        """Rate over streams to that of unary requests, turn and turn about."""
        streamed, unary = (
            [sample.measured.rate for sample in self.streams[operation][how]]
            for how in (STREAM, UNARY)
        )
        return _ratio(streamed, unary)

    def document(self, works: Iterable[Work]) -> dict[str, Any]:
        """The figures of bench.json: rates per second, latencies in milliseconds."""
        works = list(works)
        ratios = {
            server: {
                work.name: self.ratio(work, server)
                for work in works
                if any(name == work.name and server in by for (name, _), by in self.top.items())
            }
            for server in (OURS, OURS_SHARED)
        }
        streams = {f"{name}_stream": self.stream_ratio(name) for name in self.streams}
        return {
            "ratios": {
                name: ratio["median"] for name, ratio in {**ratios[OURS], **streams}.items()
            },
            "marks": MARKS,
            "ratios_by_server": ratios,
            "ratios_to_unary": streams,
            "top_rate": {
                work.name: {
                    str(in_flight): {name: _summary(samples) for name, samples in servers.items()}
                    for (name, in_flight), servers in self.top.items()
                    if name == work.name
                }
                for work in works
            },
            "half_rate": {
                name: {
                    "asked_for": round(self.pace[name], 1),
                    **{server: _summary(samples) for server, samples in servers.items()},
                }
                for name, servers in self.paced.items()
            },
            "streams": {
                f"{name}_stream": {how: _summary(samples) for how, samples in hows.items()}
                for name, hows in self.streams.items()
            },
            "floor": {kind: _summary(samples) for kind, samples in self.floor.items()},
            "memory_mib": {
                name: {"before": round(before / 2**20), "after": round(after / 2**20)}
                for name, (before, after) in self.memory.items()
            },
        }


def _ratio(mine: list[float], others: list[float]) -> dict[str, float]:
    by_round = [one / other for one, other in zip(mine, others, strict=True)]
    median = statistics.median(mine) / statistics.median(others)
    return _rounded({"median": median, "min": min(by_round), "max": max(by_round)}, 2)


def _summary(samples: list[Sample]) -> dict[str, Any]:
    def median_of(value: Callable[[Sample], float]) -> float:
        return statistics.median(map(value, samples))

    rates = [sample.measured.rate for sample in samples]
    rate = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
    return {
        "rate": _rounded(rate, 1),
        "p50_ms": round(median_of(lambda sample: sample.measured.p50) * 1000, 2),
        "p99_ms": round(median_of(lambda sample: sample.measured.p99) * 1000, 2),
        "cpu_seconds_per_1000": round(median_of(lambda sample: sample.cpu), 3),
    }


def _rounded(values: dict[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}
