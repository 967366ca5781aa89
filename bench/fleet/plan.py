"""All that `make simulate-fleet` runs, each by its place in fleet.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from meshmint.agent.config import RenewalSettings

from fleet.measured import Replica
from fleet.scenarios import BEFORE, EVENTS, Scenario, Search, echo_hours
from fleet.simulation import Absence, Event, Fleet

__all__ = ["CHOICES", "COARSER", "REPLICAS", "Key", "tasks"]

Key = tuple[str, ...]

# How many replicas choices are compared with, and which numbers are drawn; at rest one is.
REPLICAS: Final = 8
_DRAWN: Final = (4, 8, 16)
_AT_REST: Final = 1
# For how many minutes a service may be away.
_OUTAGES: Final = (10, 20, 30)

_HOUR: Final = 3600.0
CHOICES: Final[dict[str, Fleet]] = {
    "as it comes": Fleet(),
    "`jitter: 0`": Fleet(renewal=RenewalSettings(jitter=0)),
    "`jitter: 0.2`": Fleet(renewal=RenewalSettings(jitter=0.2)),
    "`fraction: 0.5`": Fleet(renewal=RenewalSettings(fraction=0.5)),
    "`fraction: 0.5`, `jitter: 0.4`": Fleet(renewal=RenewalSettings(fraction=0.5, jitter=0.4)),
    "2 hours": Fleet(lifetime=2 * _HOUR),
    "24 hours": Fleet(lifetime=24 * _HOUR),
    "24 hours, `jitter: 0`": Fleet(lifetime=24 * _HOUR, renewal=RenewalSettings(jitter=0)),
}
_ECHOES: Final = {"containers": EVENTS["containers"], "away": EVENTS["away"]}
# Which of them are drawn, and how finely, in seconds, courses are.
_DRAWN_CHOICES: Final = tuple(CHOICES)[:3]
_CLOSE, _FAR, _REST = 20.0, 60.0, 60.0

_BY_REPLICAS: Final = {
    "rest": (1, 2),
    "containers": (3, 4, 5, 6, 8, 12, 16),
    "machines": (1, 2, 3, 4, 6, 8, 12, 16),
    "away": (2, 4, 6, 8, 12, 16, 24),
}
# How long is looked on after the event.
_HOURS: Final = {"rest": 1.0, "containers": 0.25, "machines": 0.25, "away": 0.5}
# Choices and searches are many, and need less exactness.
COARSER: Final = 5


def tasks(one_in: int) -> dict[Key, Scenario | Search]:
    """Everything, with one of so many workloads simulated."""
    measured = Replica.measured()
    return {
        **{
            ("by_replicas", name, str(replicas)): Scenario(
                EVENTS[name], replicas, _HOURS[name], one_in, replica=measured,
                draws=_drawn(name, replicas),
            )
            for name, counts in _BY_REPLICAS.items()
            for replicas in counts
        },
        **_choices(measured, one_in),
        **_searches(measured, one_in),
    }  # fmt: skip


def _drawn(event: str, replicas: int) -> float | None:
    if event == "rest":
        return _REST if replicas == _AT_REST else None
    return _CLOSE if replicas in _DRAWN else None


def _choices(measured: Replica, one_in: int) -> dict[Key, Scenario | Search]:
    found: dict[Key, Scenario | Search] = {}
    for name, fleet in CHOICES.items():
        is_drawn = name in _DRAWN_CHOICES
        for event_name, event in _ECHOES.items():
            found["choices", name, event_name] = Scenario(
                event, REPLICAS, echo_hours(fleet), one_in if is_drawn else one_in * COARSER,
                fleet, measured, draws=_FAR if is_drawn else None,
            )  # fmt: skip
        for minutes in _OUTAGES:
            found["choices", name, f"away {minutes}"] = Scenario(
                Absence(BEFORE, minutes * 60.0), REPLICAS, 0.4, one_in * COARSER, fleet, measured
            )
    return found


def _searches(measured: Replica, one_in: int) -> dict[Key, Scenario | Search]:
    slow = {f"an HSM of {ms} ms": measured.behind_a_slow_hsm(ms) for ms in (5, 20)}
    cheap = replace(measured, handshake=measured.handshake / 2, aside=measured.aside / 2)
    compared: dict[str, tuple[Fleet, Replica]] = {
        "as measured": (Fleet(), measured),
        "one agent for 50 workloads": (Fleet(workloads_per_agent=50), measured),
        "24 hours": (Fleet(lifetime=24 * _HOUR), measured),
        "handshakes and refusals for half": (Fleet(), cheap),
        **{name: (Fleet(), replica) for name, replica in slow.items()},
    }
    return {
        ("smallest", name, event_name): Search(event, _finer(event, one_in), fleet, replica)
        for name, (fleet, replica) in compared.items()
        for event_name, event in EVENTS.items()
    }


def _finer(event: Event, one_in: int) -> int:
    """At rest it is single requests that wait, and a service of a hundredth takes long for each."""
    return max(1, one_in // COARSER) if event is None else one_in * COARSER
