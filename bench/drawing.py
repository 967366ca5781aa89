"""Plots as SVG, made by hand from lines and text, for light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final
from xml.sax.saxutils import escape

__all__ = ["HEIGHT", "WIDTH", "Place", "frame", "image", "line", "round_up", "short"]

# Of a panel, without what stands around it.
WIDTH, HEIGHT = 216, 150

Place = tuple[float, float]

_STYLE: Final = """\
  text { font: 11px system-ui, sans-serif; fill: #444 }
  .title { font-weight: 600 }
  .heading { font-size: 13px; font-weight: 600 }
  .axis { stroke: #bbb; fill: none }
  .event { fill: #ddd; opacity: 0.5 }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  .a { stroke: #1768ac } circle.a, tspan.a { fill: #1768ac }
  .b { stroke: #c2571a } circle.b, tspan.b { fill: #c2571a }
  .c { stroke: #2f8f4e } circle.c, tspan.c { fill: #2f8f4e }
  .bound { stroke-dasharray: 4 3; stroke-width: 1.5 }
  tspan.a, tspan.b, tspan.c { stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #ccc } .axis { stroke: #555 } .event { fill: #444 }
    .a { stroke: #6ab7f5 } circle.a, tspan.a { fill: #6ab7f5 }
    .b { stroke: #f0a06a } circle.b, tspan.b { fill: #f0a06a }
    .c { stroke: #6fcf8e } circle.c, tspan.c { fill: #6fcf8e }
  }
"""


def image(width: float, height: float, drawn: Iterable[str]) -> str:
    """The whole text of an image."""
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<style>\n{_STYLE}</style>",
            *drawn,
            "</svg>\n",
        ]
    )


def frame(
    left: float,
    top: float,
    *,
    title: str,
    names: Iterable[tuple[str, str]],
    highest: float,
    ticks: Iterable[tuple[float, str]],
    unit: str = "",
) -> Iterator[str]:
    """A panel without its lines.

    Args:
        left: Of its upper left corner.
        top: Likewise.
        title: Stands above it.
        names: Those of its lines, each after its style; below the title.
        highest: The value at its upper edge; the lower one is nothing.
        ticks: Places on the lower edge, from `left` on, and what is written there.
        unit: Follows each value on the left.
    """
    bottom = top + HEIGHT
    yield f'<text class="title" x="{left}" y="{top - 26}">{escape(title)}</text>'
    spans = " ".join(f'<tspan class="{style}">{escape(name)}</tspan>' for style, name in names)
    yield f'<text x="{left}" y="{top - 11}">{spans}</text>'
    yield f'<path class="axis" d="M{left} {top}V{bottom}H{left + WIDTH}"/>'
    for part in (0.0, 0.5, 1.0):
        height = bottom - part * HEIGHT
        at = f'x="{left - 6}" y="{height + 4:.1f}" text-anchor="end"'
        yield f"<text {at}>{short(part * highest)}{unit}</text>"
    for x, text in ticks:
        yield f'<text x="{left + x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>'


def line(style: str, places: Sequence[Place]) -> str:
    """A line through places."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="line {style}" points="{joined}"/>'


def round_up(value: float) -> float:
    """The least of 1, 2, 3, 4, 5, 6, 8 and 10 times a power of ten that is no less."""
    power = float(10 ** math.floor(math.log10(value)))
    return next(step * power for step in (1, 2, 3, 4, 5, 6, 8, 10) if step * power >= value)


def short(value: float) -> str:
    """A number in a few characters."""
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit and value % (unit / 2) == 0:
            return f"{value / unit:g}{name}"
    return f"{value:g}"
