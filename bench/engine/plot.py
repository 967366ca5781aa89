"""engine.svg: rates above, latencies below, for each thing that was varied.

Values stand at equal distances, as they grow by factors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from drawing import HEIGHT, WIDTH, Place, frame, image, line, round_up, short

__all__ = ["plot"]

_LEFT, _TOP, _GAP, _BETWEEN = 48, 42, 56, 72


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
    width = _LEFT + len(rows[0]) * (WIDTH + _GAP)
    height = _TOP + len(rows) * (HEIGHT + _BETWEEN)
    return image(
        width,
        height,
        (
            drawn
            for row, panels in enumerate(rows)
            for column, panel in enumerate(panels)
            for drawn in _draw(
                panel, _LEFT + column * (WIDTH + _GAP), _TOP + row * (HEIGHT + _BETWEEN)
            )
        ),
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
    highest = round_up(
        max(
            point
            for one in panel.lines
            if "bound" not in one.style
            for point in one.points
            if point is not None
        )
    )
    across = [_across(index, len(panel.values)) for index in range(len(panel.values))]
    names = [(one.style, one.name) for one in panel.lines]
    ticks = [(x, short(value)) for x, value in zip(across, panel.values, strict=True)]
    yield from frame(left, top, title=panel.title, names=names, highest=highest, ticks=ticks)
    for one in panel.lines:
        places = [
            (left + x, top + HEIGHT - point / highest * HEIGHT)
            for x, point in zip(across, one.points, strict=True)
            if point is not None and point <= highest
        ]
        yield from _draw_line(one, places)


def _draw_line(drawn: _Line, places: Sequence[Place]) -> Iterator[str]:
    yield line(drawn.style, places)
    if "bound" not in drawn.style:
        for x, y in places:
            yield f'<circle class="{drawn.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>'


def _across(index: int, count: int) -> float:
    return 14 + index * (WIDTH - 28) / max(1, count - 1)
