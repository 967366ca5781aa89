"""What `make growth` found: as a table, as JSON for programs, as a page for readers."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import subprocess
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from support.postgres import postgres_programs
from tables import markdown

__all__ = ["FLAT", "Measured", "Report", "page", "surroundings"]

# What may grow by no more than this from the least store to the largest.
FLAT = 1.5
_FLAT_ONES = ("start", "issue", "revoke", "list")


@dataclass(frozen=True, slots=True)
class Measured:
    """Medians of one size, in seconds.

    Attributes:
        revoked: How many of the records were revoked before.
        list_by: First pages, and a deep one, by what was looked for.
        crl: To make a full CRL.
        crl_entries: How many entries it has.
    """

    records: int
    revoked: int
    start: float
    issue: float
    revoke: float
    list_by: dict[str, float]
    crl: float
    crl_entries: int

    @property
    def list(self) -> float:
        """A page, whatever was looked for."""
        return statistics.median(self.list_by.values())


@dataclass(slots=True)
class Report:
    """A whole run."""

    command: str
    at: datetime
    rounds: int
    machine: dict[str, Any]
    versions: dict[str, str]
    stores: dict[str, dict[int, Measured]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What growth.json holds: times in milliseconds."""
        return {
            "command": self.command,
            "at": self.at.isoformat(timespec="seconds"),
            "machine": self.machine,
            "versions": self.versions,
            "rounds": self.rounds,
            "sizes": sorted({size for sizes in self.stores.values() for size in sizes}),
            "medians_ms": {
                store: {str(size): _milliseconds(found) for size, found in sizes.items()}
                for store, sizes in self.stores.items()
            },
            "flat": {store: _ratios(sizes) for store, sizes in self.stores.items()},
        }

    def print(self, console: Console) -> None:
        """Prints the table."""
        document = self.document()
        table = Table()
        for index, heading in enumerate(_HEADINGS):
            table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
        for row in _rows(document):
            table.add_row(*row, end_section=row[1].startswith("most"))
        console.print(table)

    def write(self, directory: Path) -> None:
        """Writes growth.json and growth.md."""
        document = self.document()
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (directory / "growth.json").write_text(text, encoding="utf-8")
        (directory / "growth.md").write_text(page(document), encoding="utf-8")


def _milliseconds(found: Measured) -> dict[str, Any]:
    return {
        "revoked": found.revoked,
        "start": round(found.start * 1000),
        "issue": round(found.issue * 1000, 2),
        "revoke": round(found.revoke * 1000, 2),
        "list": round(found.list * 1000, 2),
        "list_by": {kind: round(time * 1000, 2) for kind, time in found.list_by.items()},
        "crl": round(found.crl * 1000),
        "crl_entries": found.crl_entries,
    }


def _ratios(sizes: dict[int, Measured]) -> dict[str, float]:
    least, largest = sizes[min(sizes)], sizes[max(sizes)]
    return {name: round(getattr(largest, name) / getattr(least, name), 2) for name in _FLAT_ONES}


# --- the table -----------------------------------------------------------------------

_HEADINGS = ("store", "records", "revoked", "start", "issue", "revoke", "list", "full CRL")


def _rows(document: dict[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for store, sizes in document["medians_ms"].items():
        for size, found in sizes.items():
            rows.append(
                (
                    store,
                    f"{int(size):,}",
                    f"{found['revoked']:,}",
                    f"{found['start'] / 1000:.2f} s",
                    *(f"{found[name]:.2f} ms" for name in ("issue", "revoke", "list")),
                    f"{found['crl'] / 1000:.2f} s, {found['crl_entries']:,} entries",
                )
            )
        ratios = document["flat"][store]
        rows.append((store, "most : least", "", *map(_verdict, ratios.values()), ""))
    return rows


def _verdict(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio <= FLAT else f"{ratio:.2f} (not flat)"


# --- the page ------------------------------------------------------------------------

_PAGE = Path(__file__).with_name("page.template")


def page(document: dict[str, Any]) -> str:
    """growth.md, from what growth.json holds."""
    machine, versions = document["machine"], document["versions"]
    kinds = list(next(iter(next(iter(document["medians_ms"].values())).values()))["list_by"])
    lists = [
        (store, f"{int(size):,}", *(f"{found['list_by'][kind]:.2f}" for kind in kinds))
        for store, sizes in document["medians_ms"].items()
        for size, found in sizes.items()
    ]
    return _PAGE.read_text(encoding="utf-8").format(
        command=document["command"],
        at=document["at"][:10],
        machine=f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB",
        versions=", ".join(f"{name} {number}" for name, number in versions.items()),
        rounds=document["rounds"],
        table=markdown(_HEADINGS, _rows(document)),
        lists=markdown(("store", "records", *kinds), lists),
        flat=FLAT,
    )


# --- where ---------------------------------------------------------------------------


def surroundings() -> dict[str, Any]:
    """The machine and the versions that a run was made with."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    server = subprocess.run(
        [postgres_programs() / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return {
        "machine": {
            "cores": os.cpu_count(),
            "processor": _processor(),
            "memory_gib": round(pages * size / 2**30),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {
            "Python": platform.python_version(),
            "SQLite": sqlite3.sqlite_version,
            "PostgreSQL": server.stdout.split()[2],
            **{name: version(name) for name in ("cryptography", "grpcio", "SQLAlchemy")},
        },
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
