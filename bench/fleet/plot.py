"""fleet.svg: requests, who waits, who has no valid certificate, and later waves, by event."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from drawing import HEIGHT, WIDTH, frame, image, line, round_up

__all__ = ["plot"]

_LEFT, _TOP, _GAP, _BETWEEN = 52, 70, 60, 96
_STYLES: Final = ("a", "b", "c")
_MINUTE, _HOUR = 60.0, 3600.0


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    style: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class _Axis:
    """Time.

    Attributes:
        before: Seconds of the course before the event, with which the axis begins to count.
        step: Seconds of a value.
        unit: Seconds of what is counted.
        first: What is shown, in these.
        last: Likewise.
        every: How far apart the figures are.
    """

    before: float
    step: float
    unit: float
    first: float
    last: float
    every: float


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    lines: tuple[_Line, ...]
    axis: _Axis
    event: tuple[float, float]
    unit: str = ""


def plot(document: dict[str, Any]) -> str:
    """The text of fleet.svg, from what fleet.json holds."""
    rows = [(heading, _panels(document, event)) for event, heading in _headings(document)]
    width = _LEFT + max(len(panels) for _, panels in rows) * (WIDTH + _GAP)
    height = _TOP + len(rows) * (HEIGHT + _BETWEEN) - 40
    return image(width, height, _rows(rows))


def _rows(rows: Sequence[tuple[str, list[_Panel]]]) -> Iterator[str]:
    for row, (heading, panels) in enumerate(rows):
        top = _TOP + row * (HEIGHT + _BETWEEN)
        yield f'<text class="heading" x="{_LEFT}" y="{top - 48}">{heading}</text>'
        for column, panel in enumerate(panels):
            yield from _draw(panel, _LEFT + column * (WIDTH + _GAP), top)


# --- what is shown ---------------------------------------------------------------------


def _headings(document: dict[str, Any]) -> list[tuple[str, str]]:
    share = f"One workload of {document['restart']['one_of']} starts again"
    rest = _usual(document, "rest")["replicas"]
    replicas = document["replicas"]
    away = f"The service is away for {document['away_s'] / _MINUTE:.0f} minutes"
    return [
        ("rest", f"At rest, {rest} replica{'s' if rest > 1 else ''}"),
        ("containers", f"{share}, without what it had, {replicas} replicas"),
        ("machines", f"{share}, and has kept its certificate, {replicas} replicas"),
        ("away", f"{away}, {replicas} replicas"),
    ]


def _usual(document: dict[str, Any], event: str) -> dict[str, Any]:
    """The run that is drawn where one is."""
    runs: dict[str, dict[str, Any]] = document["by_replicas"][event]
    drawn = {name: run for name, run in runs.items() if "series" in run}
    return drawn.get(str(document["replicas"])) or next(iter(drawn.values()))


# Minutes from the event on that are shown, and how far apart the figures below are.
_MINUTES: Final = {"rest": (0, 60, 20), "containers": (-5, 10, 5), "machines": (-5, 10, 5),
                   "away": (-5, 50, 10)}  # fmt: skip


def _panels(document: dict[str, Any], event: str) -> list[_Panel]:
    runs = document["by_replicas"][event]
    series = _usual(document, event)["series"]
    first, last, every = _MINUTES[event]
    axis = _Axis(document["before_s"], series["step_s"], _MINUTE, first, last, every)
    happens = _happens(document, event)
    panels = [
        _Panel(
            "requests/s, by minutes",
            (
                _Line("arrived", "a", series["arrived"]),
                _Line("answered", "b bound", series["answered"]),
                _Line("refused", "c", series["refused"]),
            ),
            axis,
            happens,
        ),
        _Panel(
            "waiting, by minutes",
            (
                _Line("connections", "a", series["connecting"]),
                _Line("requests", "b", series["waiting"]),
            ),
            axis,
            happens,
        ),
    ]
    if event == "rest":
        return panels
    return [*panels, _without(document, runs, axis, happens), *_later(document, event)]


def _without(
    document: dict[str, Any],
    runs: Mapping[str, Any],
    axis: _Axis,
    happens: tuple[float, float],
) -> _Panel:
    workloads = document["fleet"]["workloads"]
    drawn = [(name, run) for name, run in runs.items() if "series" in run]
    lines = tuple(
        _Line(name, style, [100 * value / workloads for value in run["series"]["without"]])
        for style, (name, run) in zip(_STYLES, drawn, strict=True)
    )
    return _Panel("no valid certificate, by replicas", lines, axis, happens, unit="%")


def _later(document: dict[str, Any], event: str) -> Iterator[_Panel]:
    drawn = [one for one in document["choices"].values() if "series" in one.get(event, ())]
    if drawn:
        # Ours, which is the first, over those that it is compared with.
        lines = tuple(
            _Line(f"{one['jitter']:.0%}", style, one[event]["series"]["arrived"])
            for style, one in zip("bca", (*drawn[1:], drawn[0]), strict=True)
        )
        step = drawn[0][event]["series"]["step_s"]
        axis = _Axis(document["before_s"], step, _HOUR, 0, 12, 3)
        yield _Panel("requests/s, by hours and jitter", lines, axis, (0.0, 0.0))


def _happens(document: dict[str, Any], event: str) -> tuple[float, float]:
    """From when to when, in minutes."""
    lengths = {"rest": 0.0, "away": document["away_s"]}
    return 0.0, lengths.get(event, document["restart"]["within"]) / _MINUTE


# --- how it is drawn -------------------------------------------------------------------


def _draw(panel: _Panel, left: float, top: float) -> Iterator[str]:
    axis = panel.axis
    shown = [(one, list(_places(one, axis))) for one in panel.lines]
    highest = round_up(max(1.0, *(value for _, places in shown for _, value in places)))
    scale = WIDTH / (axis.last - axis.first)
    start, end = (scale * (moment - axis.first) for moment in panel.event)
    if end > start:
        yield (
            f'<rect class="event" x="{left + start:.1f}" y="{top}"'
            f' width="{end - start:.1f}" height="{HEIGHT}"/>'
        )
    ticks = [
        (scale * (moment - axis.first), f"{moment:g}")
        for moment in _steps(axis.first, axis.last, axis.every)
    ]
    names = [(one.style, one.name) for one in panel.lines]
    yield from frame(
        left,
        top,
        title=panel.title,
        names=names,
        highest=highest,
        ticks=ticks,
        unit=panel.unit,
    )
    for one, places in shown:
        yield line(
            one.style,
            [
                (left + scale * (moment - axis.first), top + HEIGHT * (1 - value / highest))
                for moment, value in places
            ],
        )


def _places(drawn: _Line, axis: _Axis) -> Iterator[tuple[float, float]]:
    """Moments in the middle of what a value stands for, and values."""
    for index, value in enumerate(drawn.values):
        moment = ((index + 0.5) * axis.step - axis.before) / axis.unit
        if axis.first <= moment <= axis.last:
            yield moment, value


def _steps(first: float, last: float, every: float) -> Iterator[float]:
    moment = math.ceil(first / every) * every
    while moment <= last:
        yield moment
        moment += every
