"""The figures for readers: tables on the terminal, and docs/reference/engine.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from tables import markdown

__all__ = ["page", "show"]

_TEMPLATE: Final = Path(__file__).with_name("page.template")
# The share of the CPU that other programs may have.
_QUIET: Final = 0.05
_TITLES: Final = {
    "workers": "workers",
    "connections": "connections",
    "roles": "roles in use",
    "records": "records",
    "hsm_ms": "HSM, ms",
    "hsm_ms_p11_kit": "HSM, ms, p11-kit",
}
_HEADINGS: Final = ("rate/s", "least", "most", "p50 ms", "p99 ms")
_OF_SESSIONS: Final = ("sessions give/s", "share")

Rows = list[tuple[str, ...]]


def show(document: dict[str, Any], console: Console) -> None:
    """Prints the tables."""
    for name in _TITLES:
        headings, rows = _table(document, name)
        table = Table()
        for heading in headings:
            table.add_column(heading, justify="right")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def page(document: dict[str, Any]) -> str:
    """The text of engine.md."""
    machine = document["machine"]
    share, mark = document["share_at_5_ms"], document["mark"]
    return _TEMPLATE.read_text("utf-8").format(
        command=document["command"],
        at=document["at"],
        rounds=document["rounds"],
        seconds=document["seconds"],
        cpu=machine["cpu"],
        cores=machine["cores"],
        memory=machine["memory_gib"],
        others=f"{machine['others_share_of_cpu']:.0%}",
        versions=", ".join(f"{name} {which}" for name, which in document["versions"].items()),
        warning=""
        if machine["others_share_of_cpu"] <= _QUIET
        else "**The machine was not quiet.** Rates are too low and latencies too high.\n\n",
        share=f"{share:.0%}",
        mark=f"{mark:.0%}",
        reached="reached" if share >= mark else "**missed**",
        **{name: f"{markdown(*_table(document, name), left=())}\n" for name in _TITLES},
    )


def _table(document: dict[str, Any], name: str) -> tuple[tuple[str, ...], Rows]:
    found = document[name]
    has_capacity = any("share" in one for one in found.values())
    headings = (_TITLES[name], *_HEADINGS, *(_OF_SESSIONS if has_capacity else ()))
    return headings, [
        (
            f"{int(value):,}",
            *(f"{one[key]:,.0f}" for key in ("rate", "least", "most")),
            *(f"{one[key]:,.1f}" for key in ("p50_ms", "p99_ms")),
            *(_shares(one) if has_capacity else ()),
        )
        for value, one in found.items()
    ]


def _shares(one: dict[str, float]) -> tuple[str, str]:
    if "share" not in one:
        return "", ""
    return f"{one['sessions_give']:,.0f}", f"{one['share']:.0%}"
