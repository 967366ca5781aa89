"""Tables for people: labels, values, and what is left of a validity as a bar.

Colours and anything but plain text only go to a terminal. Text from a
certificate is written by whoever made it, so its control characters never reach
the terminal.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TextIO

from meshmint.cli.inspection import Inspection
from meshmint.spans import span

__all__ = ["Row", "inspection_rows", "write_columns", "write_table"]

Row = tuple[str, Sequence[str], str]
"""A label, the lines of its value, and a colour or the empty string."""

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
_BAR_WIDTH = 24


def write_table(rows: Iterable[Row], stream: TextIO) -> None:
    """Writes labels and values in two columns, as wide as the terminal is."""
    kept = [row for row in rows if row[1]]
    if not kept:
        return
    label_width = max(len(label) for label, _, _ in kept)
    value_width = max(20, _width(stream) - label_width - 2)
    is_coloured = _has_colours(stream)
    for label, lines, colour in kept:
        wrapped = [part for line in lines for part in _wrap(_plain(line, stream), value_width)]
        for index, text in enumerate(wrapped):
            head = (label if index == 0 else "").ljust(label_width)
            if is_coloured:
                head = _paint(head, "dim")
                text = _paint(text, colour) if colour else text  # noqa: PLW2901
            print(f"{head}  {text}".rstrip(), file=stream)


def write_columns(headings: Sequence[str], lines: Iterable[Sequence[str]], stream: TextIO) -> None:
    """Writes lines under headings, each column as wide as it must be; nothing without lines."""
    cells = [[_plain(cell, stream) for cell in line] for line in lines]
    if not cells:
        return
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    for number, line in enumerate([list(headings), *cells]):
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        text = "  ".join(padded).rstrip()
        print(_paint(text, "dim") if number == 0 and _has_colours(stream) else text, file=stream)


def inspection_rows(found: Inspection, now: datetime) -> list[Row]:
    """The table of one certificate."""
    bar, colour = _validity_bar(found.not_before, found.not_after, now)
    depth = "" if found.path_length is None else f", {found.path_length} CAs below it"
    return [
        ("SPIFFE ID", _line(found.spiffe_id), "bold"),
        ("Subject", [found.subject or "(empty)"], ""),
        ("Names", found.names, ""),
        ("Issuer", [found.issuer], ""),
        ("Serial", [found.serial_number], ""),
        ("Key", [found.key], ""),
        ("Usage", _list(found.key_usage), ""),
        ("Extended usage", _list(found.extended_key_usage), ""),
        ("CA", [f"yes{depth}"] if found.is_ca else [], ""),
        ("Valid from", [_time(found.not_before)], ""),
        ("Valid to", [_time(found.not_after)], ""),
        ("Time left", [bar], colour),
        ("SHA-256", [found.fingerprint_sha256], "dim"),
    ]


def _validity_bar(start: datetime, end: datetime, now: datetime) -> tuple[str, str]:
    if now < start:
        return f"not valid yet: starts in {span(start - now)}", "red"
    if now > end:
        return f"expired {span(now - end)} ago", "red"
    left, whole = end - now, end - start
    share = left / whole if whole else 0.0
    filled = round(share * _BAR_WIDTH)
    bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
    colour = "green" if share > 1 / 3 else "yellow"
    return f"{bar} {span(left)} of {span(whole)}", colour


def _line(text: str | None) -> list[str]:
    return [text] if text else []


def _list(values: Sequence[str] | None) -> list[str]:
    return [] if values is None else [", ".join(values) or "(none)"]


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _plain(text: str, stream: TextIO) -> str:
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    encoding = stream.encoding or "ascii"
    try:
        shown.encode(encoding)
    except UnicodeEncodeError:
        shown = shown.replace("█", "#").replace("░", "-")
        return shown.encode(encoding, errors="backslashreplace").decode(encoding)
    return shown


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False) or [""]


def _width(stream: TextIO) -> int:
    # Nothing is wrapped in a file: what reads it does not expect that.
    if not stream.isatty():
        return 10_000
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def _has_colours(stream: TextIO) -> bool:
    # https://no-color.org: any value that is not empty counts.
    return (
        stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"
    )


def _paint(text: str, colour: str) -> str:
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if text else text
