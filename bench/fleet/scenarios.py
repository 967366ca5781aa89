"""What is simulated, and what is noted of each run."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from fleet.agent import Agent
from fleet.course import BIN, STEP, Course
from fleet.measured import Replica
from fleet.simulation import Absence, Event, Fleet, Restart, simulate

__all__ = ["BEFORE", "EVENTS", "WITHIN", "Scenario", "Search", "echo_hours", "rest_rate"]

# Seconds of rest before anything happens.
BEFORE: Final = 300.0
# What an event is to be over in, and what is tried for that.
WITHIN: Final = 300.0
_TRIED: Final = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 40, 48, 64)

EVENTS: Final[dict[str, Event]] = {
    "rest": None,
    "containers": Restart(BEFORE),
    "machines": Restart(BEFORE, keeps=True),
    "away": Absence(BEFORE, 1800.0),
}
_HOUR: Final = 3600.0
# Later waves are looked for when the event itself is over: the highest for two minutes, and the
# last that is a quarter above the rate at rest for a sixth of a lifetime.
_AFTERWARDS: Final = 1200.0
_HIGHEST_SECONDS: Final = 120.0
_LOUD: Final = 1.25
_PARTS_OF_A_LIFETIME: Final = 6
# How long is looked for them.
_LIFETIMES: Final = 12
_DRAWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run.

    Attributes:
        event: What happens.
        replicas: How many there are.
        hours: How long is looked on after the event.
        one_in: Of how many workloads one is simulated.
        fleet: Who wants certificates.
        replica: What a replica does.
        draws: Seconds of a value of the course that is kept for a plot; None: none is.
    """

    event: Event
    replicas: int
    hours: float
    one_in: int
    fleet: Fleet = field(default_factory=Fleet)
    replica: Replica = field(default_factory=Replica.measured)
    draws: float | None = None

    @property
    def over_at(self) -> float:
        """When the event is over, and only its consequences are left; seconds."""
        return BEFORE + (self.event.seconds if isinstance(self.event, Absence) else 0.0)

    def run(self) -> dict[str, Any]:
        """Simulates, and notes what is told of it; ``series`` only if it is drawn."""
        return _noted(self)


@dataclass(frozen=True, slots=True)
class Search:
    """The smallest number of replicas with which all have good certificates again in time.

    Attributes:
        event: What happens. WITHIN seconds later every workload must have a good certificate; if
            nothing happens, 99% of the requests must be answered within a second, and all.
        one_in: Of how many workloads one is simulated.
        fleet: Who wants certificates.
        replica: What a replica does.
    """

    event: Event
    one_in: int
    fleet: Fleet
    replica: Replica

    def run(self) -> int | None:
        """Tries one number after the other; None if none of them is enough."""
        return next((replicas for replicas in _TRIED if self._is_enough(replicas)), None)

    def _is_enough(self, replicas: int) -> bool:
        if replicas * self.replica.certificates < rest_rate(self.fleet):
            return False
        hours = WITHIN / _HOUR
        found = Scenario(self.event, replicas, hours, self.one_in, self.fleet, self.replica).run()
        if self.event is None:
            return bool(found["wait_p99_s"] <= 1 and not found["refused"])
        return found["all_valid_s"] is not None


def _noted(scenario: Scenario) -> dict[str, Any]:
    over_at = scenario.over_at
    course = simulate(
        scenario.fleet, scenario.replica, scenario.replicas, scenario.event,
        hours=over_at / _HOUR + scenario.hours, one_in=scenario.one_in,
    )  # fmt: skip
    arrived = course.rates("arrived")
    noted: dict[str, Any] = {
        "replicas": scenario.replicas,
        "highest_rate": round(max(arrived[round(BEFORE / BIN) :])),
        **{what: course.total(what) for what in ("arrived", "answered", "refused", "late", "lost")},
        "waiting": max(course.levels("waiting")),
        "connecting": max(course.levels("connecting")),
        "wait_p99_s": round(course.wait(0.99), 1),
        "without": max(course.without()),
        "expired_before": course.lapses() - course.lapses(over_at),
        "expired_after": course.lapses(over_at),
        "awaited": course.awaited,
        "all_valid_s": _rounded(_all_valid_after(course, scenario)),
        "served_99_s": _rounded(course.served_after(0.99)),
        "served_all_s": _rounded(course.served_after(1.0)),
    }
    is_echo = scenario.hours == echo_hours(scenario.fleet)
    if is_echo:
        noted["echo"] = _echo(arrived, over_at, scenario.fleet)
    if scenario.draws is not None:
        noted["series"] = _series(course, round(scenario.draws / BIN))
        if is_echo:
            # All else is over long before the end.
            noted["series"] = {name: noted["series"][name] for name in ("step_s", "arrived")}
    return noted


def rest_rate(fleet: Fleet) -> float:
    """Requests a second of a fleet that has run for long."""
    agent = Agent(fleet.renewal, fleet.lifetime, Random(1), lambda: 0.0)  # noqa: S311
    return fleet.workloads / statistics.mean(agent.renews_after() for _ in range(_DRAWS))


def echo_hours(fleet: Fleet) -> float:
    """For how long later waves are looked for."""
    return _LIFETIMES * fleet.lifetime / _HOUR


def _all_valid_after(course: Course, scenario: Scenario) -> float | None:
    """Seconds from the end of the event on; None if some are not until the end."""
    at = course.all_valid_at()
    if at >= scenario.over_at + scenario.hours * _HOUR - STEP:
        return None
    return max(0.0, at - scenario.over_at)


def _rounded(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _echo(arrived: list[float], over_at: float, fleet: Fleet) -> dict[str, Any]:
    """Requests a second at rest and in the highest later wave, and when the last one was."""
    rest = rest_rate(fleet)
    after = arrived[round((over_at + _AFTERWARDS) / BIN) :]
    length = round(fleet.lifetime / _PARTS_OF_A_LIFETIME / BIN)
    means = _means(after, length)
    loud = [index for index, mean in enumerate(means) if mean >= _LOUD * rest]
    last = _AFTERWARDS + loud[-1] * length * BIN if loud else 0.0
    return {
        "highest_rate": round(max(_means(after, round(_HIGHEST_SECONDS / BIN)))),
        # None: there may be more of them.
        "faded_after_h": None if loud and loud[-1] > 0.8 * len(means) else round(last / _HOUR, 1),
    }


def _means(values: list[float], length: int) -> list[float]:
    """Of each so many in turn."""
    return [
        statistics.mean(values[index : index + length])
        for index in range(0, len(values) - length + 1, length)
    ]


def _series(course: Course, length: int) -> dict[str, Any]:
    """Means of so many bins, and the highest levels in them."""
    rates = {name: course.rates(name) for name in ("arrived", "answered", "refused")}
    levels = {name: course.levels(name) for name in ("waiting", "connecting")}
    levels["without"] = course.without()
    series: dict[str, Any] = {"step_s": length * BIN}
    for name, rate in rates.items():
        series[name] = [round(mean, 1) for mean in _means(rate, length)]
    for name, level in levels.items():
        series[name] = [
            max(level[index : index + length]) for index in range(0, len(level), length)
        ]
    return series
