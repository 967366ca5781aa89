"""What `make soak` found: as a table, as JSON for programs, as a page for readers."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from meshmint import MeshmintError
from rich.console import Console
from rich.table import Table
from support.reconciliation import Reconciliation
from tables import markdown

from soak.replicas import Usage

__all__ = ["FLAT", "Report", "page"]

# Memory and descriptors at the end may be so many times those of the beginning.
FLAT = 1.2
_SHOWN = 20  # serial numbers of what is lost or doubled

_PAGE = Path(__file__).with_name("page.template")


@dataclass(slots=True)
class Report:
    """A whole run.

    Attributes:
        recoveries: Seconds from each fault until both replicas were whole again, by kind.
        refused: Calls that failed after all their retries, by status code.
        usage: Of the whole set, at the beginning and after each recovery.
    """

    command: str
    at: datetime
    seconds: int
    seed: int
    machine: dict[str, Any]
    versions: dict[str, str]
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    refused: Counter[str] = field(default_factory=Counter)
    usage: list[Usage] = field(default_factory=list)
    reconciliation: Reconciliation = field(default_factory=lambda: Reconciliation(0, (), (), 0))

    def note(self, errors: Iterable[MeshmintError]) -> None:
        """Counts the errors that callers were left with."""
        self.refused.update(error.code for error in errors)

    @property
    def status(self) -> int:
        """The exit status: 1 if anything was lost or minted twice."""
        return int(bool(self.reconciliation.lost or self.reconciliation.doubled))

    def document(self) -> dict[str, Any]:
        """What soak.json holds."""
        found = self.reconciliation
        return {
            "command": self.command,
            "at": self.at.isoformat(timespec="seconds"),
            "machine": self.machine,
            "versions": self.versions,
            "seconds": self.seconds,
            "seed": self.seed,
            "issued": found.issued,
            "faults": sum(map(len, self.recoveries.values())),
            "faults_by_kind": {kind: len(times) for kind, times in sorted(self.recoveries.items())},
            "lost": len(found.lost),
            "doubled": len(found.doubled),
            "lost_serials": list(found.lost[:_SHOWN]),
            "doubled_what": list(found.doubled[:_SHOWN]),
            "unclaimed": found.unclaimed,
            "refused": dict(sorted(self.refused.items())),
            "recovery_s": {
                kind: {
                    "median": round(statistics.median(times), 1),
                    "longest": round(max(times), 1),
                }
                for kind, times in sorted(self.recoveries.items())
            },
            "memory_mib": _course(self.usage, lambda usage: usage.memory),
            "descriptors": _course(self.usage, lambda usage: usage.descriptors),
        }

    def print(self, console: Console) -> None:
        """Prints the tables, and names what was lost or minted twice."""
        document = self.document()
        for headings, rows in ((_FAULTS, _faults(document)), (_FOUND, _found(document))):
            table = Table()
            for index, heading in enumerate(headings):
                table.add_column(heading, justify="left" if index == 0 else "right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
        for name in ("lost_serials", "doubled_what"):
            for value in document[name]:
                console.print(f"{name.partition('_')[0]}: {value}", style="red", highlight=False)

    def write(self, directory: Path) -> None:
        """Writes soak.json and soak.md."""
        document = self.document()
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (directory / "soak.json").write_text(text, encoding="utf-8")
        (directory / "soak.md").write_text(page(document), encoding="utf-8")


def _course(usage: Sequence[Usage], value: Callable[[Usage], float]) -> dict[str, float]:
    """How something went: the medians of the first and the last third, and their ratio."""
    values = [value(one) for one in usage]
    third = max(1, len(values) // 3)
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    return {
        "samples": len(values),
        "first": round(first, 1),
        "last": round(last, 1),
        "most": round(max(values), 1),
        "ratio": round(last / first, 2),
    }


# --- the tables ----------------------------------------------------------------------

_FAULTS = ("fault", "times", "whole again, median", "longest")
_FOUND = ("found", "")


def _faults(document: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            kind,
            str(count),
            f"{document['recovery_s'][kind]['median']:.1f} s",
            f"{document['recovery_s'][kind]['longest']:.1f} s",
        )
        for kind, count in document["faults_by_kind"].items()
    ]


def _found(document: dict[str, Any]) -> list[tuple[str, ...]]:
    refused = ", ".join(f"{count:,} {code}" for code, count in document["refused"].items())
    return [
        ("issued", f"{document['issued']:,}"),
        ("lost", f"{document['lost']:,}"),
        ("doubled", f"{document['doubled']:,}"),
        ("unclaimed", f"{document['unclaimed']:,}"),
        ("failed at the client", refused or "0"),
        ("memory, MiB", _told(document["memory_mib"])),
        ("file descriptors", _told(document["descriptors"])),
    ]


def _told(course: dict[str, float]) -> str:
    verdict = "" if course["ratio"] <= FLAT else ", not flat"
    return f"{course['first']:,g} to {course['last']:,g} ({course['ratio']:.2f}{verdict})"


def page(document: dict[str, Any]) -> str:
    """soak.md, from what soak.json holds."""
    machine = document["machine"]
    return _PAGE.read_text(encoding="utf-8").format(
        command=document["command"],
        at=document["at"][:10],
        seconds=document["seconds"],
        machine=f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB",
        versions=", ".join(f"{name} {number}" for name, number in document["versions"].items()),
        found=markdown(_FOUND, _found(document)),
        faults=markdown(_FAULTS, _faults(document)),
        flat=FLAT,
    )
