"""The figures for readers: tables on the terminal, and docs/operations/fleet.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from tables import markdown

__all__ = ["page", "show"]

_TEMPLATE: Final = Path(__file__).with_name("page.template")
_DAY: Final = 86_400
_RECORD_BYTES: Final = 1_500  # docs/operations/records.md

Rows = list[tuple[str, ...]]


def show(document: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    for headings, rows in (_by_replicas(document), _smallest(document), _choices(document)):
        table = Table()
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if index else "left")
        for row in rows:
            table.add_row(*(text.replace("`", "") for text in row))
        console.print(table)


def page(document: dict[str, Any]) -> str:
    """The text of fleet.md."""
    fleet, replica = document["fleet"], document["replica"]
    rest = document["by_replicas"]["rest"]["1"]
    usual = document["by_replicas"]["away"][str(document["replicas"])]
    smallest = document["smallest"]["as measured"]
    ours = next(iter(document["choices"].values()))
    wave = max((ours[name]["echo"] for name in ("containers", "away")), key=_height)
    left = [1 - fleet["fraction"] + side * fleet["jitter"] for side in (-1, 1)]
    memory = fleet["workloads"] * replica["connection_bytes"] / 2**30
    rate = document["rest_rate"]
    return _TEMPLATE.read_text("utf-8").format(
        command=document["command"],
        seconds=document["seconds"],
        one_in=document["one_in"],
        workloads=f"{fleet['workloads']:,}",
        minutes=f"{fleet['lifetime_s'] / 60:.0f}",
        jitter=f"{fleet['jitter']:.0%}",
        cores=replica["cores"],
        workers=replica["workers"],
        certificates=f"{replica['certificates']:,.0f}",
        handshake=f"{replica['handshake'] * 1000:.2f}",
        aside=f"{replica['aside'] * 1000:.2f}",
        room=f"{replica['room']:,}",
        retry_after=f"{replica['retry_after']:g}",
        time_limit=f"{replica['time_limit']:g}",
        rate=f"{rate:,.0f}",
        busy=f"{rate / replica['certificates']:.2f}",
        rest_wait=f"{rest['wait_p99_s']:g}",
        one_of=document["restart"]["one_of"],
        within=f"{document['restart']['within']:.0f}",
        limit=f"{document['within_s'] / 60:.0f}",
        away=f"{document['away_s'] / 60:.0f}",
        replicas=document["replicas"],
        smallest_rest=smallest["rest"],
        smallest_containers=smallest["containers"],
        smallest_machines=smallest["machines"],
        smallest_away=smallest["away"],
        coarser=document["one_in"] * document["coarser"],
        expired=_percent(usual["expired_before"], fleet["workloads"]),
        expired_after=_percent(usual["expired_after"], fleet["workloads"]),
        overdue=_percent(usual["awaited"], fleet["workloads"]),
        least_left=f"{left[0] * fleet['lifetime_s'] / 60:.0f}",
        most_left=f"{left[1] * fleet['lifetime_s'] / 60:.0f}",
        least_share=f"{left[0]:.0%}",
        watchers=f"{replica['watchers']:,}",
        watchers_replicas=math.ceil(fleet["workloads"] / replica["watchers"]),
        connection=f"{replica['connection_bytes'] / 2**10:.0f}",
        memory=f"{memory:.0f}",
        records=f"{rate * _DAY / 1e6:.0f}",
        record_bytes=f"{rate * _DAY * _RECORD_BYTES / 1e9:.0f}",
        wave=f"{wave['highest_rate']:,}",
        wave_replicas=math.ceil(wave["highest_rate"] / replica["certificates"]),
        wave_hours=_hours(wave["faded_after_h"]),
        by_replicas=f"{markdown(*_by_replicas(document))}\n",
        smallest=f"{markdown(*_smallest(document))}\n",
        choices=f"{markdown(*_choices(document))}\n",
    )


# --- tables ----------------------------------------------------------------------------

_EVENTS: Final = {
    "rest": "at rest",
    "containers": "restart, nothing kept",
    "machines": "restart, certificates kept",
    "away": "away",
}


def _by_replicas(document: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    headings = (
        "event", "replicas", "requests/s at most", "refused", "too late", "p99 of waits, s",
        "invalid at most", "expired after it",
        "all valid, s", "99% served, s", "all, s",
    )  # fmt: skip
    return headings, [
        (
            _EVENTS[event], replicas, *(f"{run[name]:,}" for name in (
                "highest_rate", "refused", "late")),
            f"{run['wait_p99_s']:g}", f"{run['without']:,}",
            f"{run['expired_after']:,}" if event in ("machines", "away") else "",
            *(_seconds(run, name) for name in ("all_valid_s", "served_99_s", "served_all_s")),
        )
        for event, runs in document["by_replicas"].items()
        for replicas, run in runs.items()
    ]  # fmt: skip


def _smallest(document: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    return ("", *_EVENTS.values()), [
        (name, *(_count(found[event]) for event in _EVENTS))
        for name, found in document["smallest"].items()
    ]


def _choices(document: dict[str, Any]) -> tuple[tuple[str, ...], Rows]:
    chosen = document["choices"]
    outages = [name for name in next(iter(chosen.values())) if name.startswith("away ")]
    workloads = document["fleet"]["workloads"]
    headings = (
        "settings", "requests/s at rest", "highest wave after a restart", "gone after, h",
        "after an absence", "gone after, h", *(f"expired, {name} min" for name in outages),
    )  # fmt: skip
    return headings, [
        (
            name,
            f"{one['rest_rate']:,.0f}",
            *(
                text
                for event in ("containers", "away")
                for text in (
                    f"{one[event]['echo']['highest_rate']:,}",
                    _hours(one[event]["echo"]["faded_after_h"]),
                )
            ),
            *(
                _percent(one[outage]["expired_before"] + one[outage]["expired_after"], workloads)
                for outage in outages
            ),
        )
        for name, one in chosen.items()
    ]


def _height(echo: Mapping[str, float]) -> float:
    return echo["highest_rate"]


def _seconds(run: Mapping[str, Any], name: str) -> str:
    if not run["awaited"]:
        return ""
    return "never" if run[name] is None else f"{run[name]:,}"


def _hours(hours: float | None) -> str:
    return "never" if hours is None else f"{hours:g}"


def _count(count: int | None) -> str:
    return "more than 64" if count is None else str(count)


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"
