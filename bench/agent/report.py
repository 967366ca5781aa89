"""What `make bench-agent` found: as a table, as JSON for programs, as a page for readers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tables import markdown

from agent.layout import Layout
from agent.measuring import Use
from agent.phases import Plan, Push

__all__ = ["KINDS", "Measured", "Report", "page"]

_PAGE = Path(__file__).with_name("page.template")


@dataclass(slots=True)
class Measured:
    """What was found with one layout; what was not looked at is empty.

    Attributes:
        fresh: Starts with nothing kept, in seconds.
        kept: Starts with all certificates kept.
        alone: What the agent used before anybody listened.
        opened: From opening all streams at once to when each had its first message.
        listening: What it used with the streams open.
        at_rest: CPU seconds in a minute.
        pushes: By what has changed: `one`, `root`, `all`.
        end: What it used in the end.
    """

    layout: Layout
    fresh: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    alone: Use | None = None
    opened: float = 0.0
    listening: Use | None = None
    at_rest: float | None = None
    pushes: dict[str, list[Push]] = field(default_factory=dict)
    end: Use | None = None

    def document(self) -> dict[str, Any]:
        """What agent-size.json has of it."""
        assert self.alone is not None
        assert self.listening is not None
        assert self.end is not None
        layout = self.layout
        found: dict[str, Any] = {
            "sockets": layout.sockets,
            "certificates_on_a_socket": max(map(len, map(layout.served, range(layout.sockets)))),
            "start_s": {"kept": _spread(self.kept, 2)},
            "memory_mib": {
                "certificates": round(self.alone.memory, 1),
                "with_streams": round(self.listening.memory, 1),
                "in_the_end": round(self.end.memory, 1),
                "most": round(self.end.most_memory, 1),
            },
            "descriptors": {
                "certificates": self.alone.descriptors,
                "with_streams": self.listening.descriptors,
            },
            "threads": self.end.threads,
            "streams_opened_s": round(self.opened, 2),
            "pushes": {kind: _pushes(pushes) for kind, pushes in self.pushes.items()},
        }
        if self.fresh:
            found["start_s"]["fresh"] = _spread(self.fresh, 2)
        if self.at_rest is not None:
            found["cpu_at_rest_s_per_minute"] = round(self.at_rest, 2)
        return found


def _pushes(pushes: Sequence[Push]) -> dict[str, Any]:
    return {
        "times": len(pushes),
        "streams": max(push.streams for push in pushes),
        "obtained_s": _spread([push.obtained for push in pushes]),
        "delay_s": _spread([delay for push in pushes for delay in push.delays]),
        "last_s": _spread([push.last for push in pushes]),
        "messages": round(statistics.median(push.messages for push in pushes)),
        "megabytes": round(statistics.median(push.megabytes for push in pushes), 1),
        "agent_cpu_s": _spread([push.cpu for push in pushes], 2),
    }


def _spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "most": round(max(values), digits),
    }


@dataclass(slots=True)
class Report:
    """A whole run."""

    command: str
    at: datetime
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    plan: Plan
    measured: Sequence[Measured] = ()

    def document(self) -> dict[str, Any]:
        """What agent-size.json holds."""
        layout = self.measured[0].layout
        return {
            "command": self.command,
            "at": self.at.isoformat(timespec="seconds"),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "certificates": layout.certificates,
            "certificates_with_outputs": layout.outputs,
            "connections": layout.connections,
            "streams": layout.streams,
            "starts": self.plan.starts,
            "rest_s": self.plan.rest,
            "layouts": [measured.document() for measured in self.measured],
        }

    def print(self, console: Console) -> None:
        """Prints the table."""
        document = self.document()
        table = Table()
        for index, heading in enumerate(_headings(document)):
            table.add_column(heading, justify="left" if index == 0 else "right")
        for rows in _groups(document):
            for row in rows:
                table.add_row(*row)
            table.add_section()
        console.print(table)

    def write(self, directory: Path) -> None:
        """Writes agent-size.json and agent-size.md."""
        document = self.document()
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (directory / "agent-size.json").write_text(text, encoding="utf-8")
        (directory / "agent-size.md").write_text(page(document), encoding="utf-8")


# --- the table -----------------------------------------------------------------------


def _headings(document: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{document['certificates']:,} certificates, {document['streams']:,} streams",
        *(_called(layout) for layout in document["layouts"]),
    )


def _called(layout: Mapping[str, Any]) -> str:
    count, held = layout["sockets"], layout["certificates_on_a_socket"]
    return f"{count} socket{'s' if count > 1 else ''} with {held} certificates"


def _groups(document: Mapping[str, Any]) -> Iterator[list[tuple[str, ...]]]:
    layouts = document["layouts"]
    starts = [one["start_s"] for one in layouts]
    yield [
        ("start, with nothing kept", *(_seconds(one.get("fresh")) for one in starts)),
        ("start, with all certificates kept", *(_seconds(one["kept"]) for one in starts)),
    ]
    yield [
        ("memory, certificates alone", *_figures(layouts, "memory_mib", "certificates", " MiB")),
        ("memory, with the streams", *_figures(layouts, "memory_mib", "with_streams", " MiB")),
        ("memory, after all pushes", *_figures(layouts, "memory_mib", "in_the_end", " MiB")),
        ("memory, the most", *_figures(layouts, "memory_mib", "most", " MiB")),
        ("file descriptors, certificates alone", *_figures(layouts, "descriptors", "certificates")),
        ("file descriptors, with the streams", *_figures(layouts, "descriptors", "with_streams")),
        ("threads", *(str(one["threads"]) for one in layouts)),
    ]
    yield [
        ("CPU at rest, of a minute", *(_at_rest(one) for one in layouts)),
        ("all streams opened at once", *(f"{one['streams_opened_s']:.2f} s" for one in layouts)),
    ]
    for kind, told in KINDS.items():
        found = [one["pushes"].get(kind) for one in layouts]
        if any(found):
            yield list(_push_rows(kind, told, found))


KINDS = {
    "one": "one renewed that all have",
    "root": "a new root",
    "all": "all renewed at once",
}


def _push_rows(
    kind: str, told: str, found: Sequence[Mapping[str, Any] | None]
) -> Iterator[tuple[str, ...]]:
    def row(what: str, tell: Any) -> tuple[str, ...]:
        return (f"{told}: {what}", *("" if one is None else tell(one) for one in found))

    if kind == "all":
        yield row("until the last is there", lambda one: _seconds(one["obtained_s"]))
        yield row("each, until its last push", lambda one: _seconds(one["delay_s"]))
    yield row(
        "then until the last push" if kind == "all" else "until the last push",
        lambda one: _seconds(one["last_s"]),
    )
    yield row(
        "streams, messages, MB",
        lambda one: f"{one['streams']:,}, {one['messages']:,}, {one['megabytes']:,.1f}",
    )
    yield row("CPU of the agent", lambda one: _seconds(one["agent_cpu_s"]))


def _figures(
    layouts: Sequence[Mapping[str, Any]], group: str, name: str, unit: str = ""
) -> Iterator[str]:
    return (f"{one[group][name]:,.0f}{unit}" for one in layouts)


def _at_rest(layout: Mapping[str, Any]) -> str:
    found = layout.get("cpu_at_rest_s_per_minute")
    return "" if found is None else f"{found:.2f} s"


def _seconds(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    median, most = spread["median"], spread["most"]
    return f"{median:.2f} s" if median == most else f"{median:.2f} s, most {most:.2f} s"


# --- the page ------------------------------------------------------------------------


def page(document: Mapping[str, Any]) -> str:
    """agent-size.md, from what agent-size.json holds."""
    machine, first = document["machine"], document["layouts"][0]
    others = machine["others_share_of_cpu"]
    return _PAGE.read_text(encoding="utf-8").format(
        command=document["command"],
        at=document["at"][:10],
        machine=f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB",
        others=f"{others:.0%}",
        versions=", ".join(f"{name} {number}" for name, number in document["versions"].items()),
        certificates=f"{document['certificates']:,}",
        outputs=f"{document['certificates_with_outputs']:,}",
        streams=f"{document['streams']:,}",
        connections=f"{document['connections']:,}",
        sockets=first["sockets"],
        served=first["certificates_on_a_socket"],
        starts=document["starts"],
        rest=f"{document['rest_s']:g}",
        times=", ".join(
            f"{KINDS[kind]}: {found['times']}" for kind, found in first["pushes"].items()
        ),
        table=markdown(_headings(document), [row for rows in _groups(document) for row in rows]),
    )
