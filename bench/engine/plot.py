"""engine.svg: rates above, latencies below, for each thing that was varied.

Made by hand from lines and text, for light and dark pages; values stand at equal
distances, as they grow by factors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from xml.sax.saxutils import escape

__all__ = ["plot"]

_WIDTH, _HEIGHT = 216, 150
_LEFT, _TOP, _GAP, _BETWEEN = 48, 42, 56, 72
_STYLE: Final = """\
  text { font: 11px system-ui, sans-serif; fill: #444 }
  .title { font-weight: 600 }
  .axis { stroke: #bbb; fill: none }
  .line { fill: none; stroke-width: 2 }
  .a { stroke: #1768ac } circle.a, tspan.a { fill: #1768ac }
  .b { stroke: #c2571a } circle.b, tspan.b { fill: #c2571a }
  .bound { stroke-dasharray: 4 3; stroke-width: 1.5 }
  tspan.a, tspan.b { stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #ccc } .axis { stroke: #555 }
    .a { stroke: #6ab7f5 } circle.a, tspan.a { fill: #6ab7f5 }
    .b { stroke: #f0a06a } circle.b, tspan.b { fill: #f0a06a }
  }
"""


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    style: str
    points: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    values: tuple[int, ...]
    lines: tuple[_Line, ...]


def plot(document: dict[str, Any]) -> str:
    """The text of engine.svg, from what engine.json holds."""
    rows = [_rate_panels(document), _latency_panels(document)]
    width = _LEFT + len(rows[0]) * (_WIDTH + _GAP)
    height = _TOP + len(rows) * (_HEIGHT + _BETWEEN)
    drawn = [
        line
        for row, panels in enumerate(rows)
        for column, panel in enumerate(panels)
        for line in _draw(
            panel, _LEFT + column * (_WIDTH + _GAP), _TOP + row * (_HEIGHT + _BETWEEN)
        )
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<style>\n{_STYLE}</style>",
            *drawn,
            "</svg>\n",
        ]
    )


# --- what is shown ---------------------------------------------------------------------

_PLAIN: Final = ("workers", "connections", "roles", "records")


def _rate_panels(document: dict[str, Any]) -> list[_Panel]:
    panels = [
        _Panel(
            f"rate/s by {name}",
            _values(document[name]),
            (_Line("", "a", _each(document[name], "rate")),),
        )
        for name in _PLAIN
    ]
    one, two = document["hsm_ms"], document["hsm_ms_p11_kit"]
    lines = (
        _Line("two workers", "a", _each(one, "rate")),
        _Line("", "a bound", _each(one, "sessions_give")),
        _Line("one worker, p11-kit", "b", _each(two, "rate")),
    )
    return [
        *panels,
        _Panel("rate/s by ms of the HSM (dashed: of sessions)", _values(one), lines),
    ]


def _latency_panels(document: dict[str, Any]) -> list[_Panel]:
    return [
        _Panel(
            f"latency in ms by {title}",
            _values(document[name]),
            (
                _Line("p50", "a", _each(document[name], "p50_ms")),
                _Line("p99", "b", _each(document[name], "p99_ms")),
            ),
        )
        for name, title in (*((name, name) for name in _PLAIN), ("hsm_ms", "ms of the HSM"))
    ]


def _values(found: dict[str, Any]) -> tuple[int, ...]:
    return tuple(map(int, found))


def _each(found: dict[str, Any], key: str) -> tuple[float | None, ...]:
    return tuple(one.get(key) for one in found.values())


# --- how it is drawn -------------------------------------------------------------------


def _draw(panel: _Panel, left: float, top: float) -> Iterator[str]:
    # What sessions could give at no delay to speak of is beyond any service, and off the scale.
    highest = _round_up(
        max(
            point
            for line in panel.lines
            if "bound" not in line.style
            for point in line.points
            if point is not None
        )
    )
    bottom = top + _HEIGHT
    yield f'<text class="title" x="{left}" y="{top - 26}">{escape(panel.title)}</text>'
    names = [f'<tspan class="{line.style}">{escape(line.name)}</tspan>' for line in panel.lines]
    yield f'<text x="{left}" y="{top - 11}">{" ".join(names)}</text>'
    yield f'<path class="axis" d="M{left} {top}V{bottom}H{left + _WIDTH}"/>'
    for part in (0.0, 0.5, 1.0):
        height = bottom - part * _HEIGHT
        at = f'x="{left - 6}" y="{height + 4:.1f}" text-anchor="end"'
        yield f"<text {at}>{_short(part * highest)}</text>"
    across = [_across(left, index, len(panel.values)) for index in range(len(panel.values))]
    for value, x in zip(panel.values, across, strict=True):
        at = f'x="{x:.1f}" y="{bottom + 16}" text-anchor="middle"'
        yield f"<text {at}>{_short(value)}</text>"
    for line in panel.lines:
        places = [
            (x, bottom - point / highest * _HEIGHT)
            for x, point in zip(across, line.points, strict=True)
            if point is not None and point <= highest
        ]
        yield from _draw_line(line, places)


def _draw_line(line: _Line, places: Sequence[tuple[float, float]]) -> Iterator[str]:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    yield f'<polyline class="line {line.style}" points="{joined}"/>'
    if "bound" not in line.style:
        for x, y in places:
            yield f'<circle class="{line.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def _across(left: float, index: int, count: int) -> float:
    return left + 14 + index * (_WIDTH - 28) / max(1, count - 1)


def _round_up(value: float) -> float:
    """The least of 1, 2, 3, 4, 5, 6, 8 and 10 times a power of ten that is no less."""
    power = float(10 ** math.floor(math.log10(value)))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value)


def _short(value: float) -> str:
    """A number in a few characters."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit and value % (unit / 2) == 0:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
