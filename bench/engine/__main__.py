"""`make bench-engine`: measures, prints tables, and writes engine.json, engine.md, engine.svg."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sqlite3
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from peers.load import BadRun, Measured
from peers.surroundings import Surroundings
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from engine.page import page, show
from engine.plot import plot
from engine.results import document
from engine.sweeps import SWEEPS, Plan

_REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
# Beside connections, for what a process has open anyway.
_OTHER_FILES = 256

Found = dict[str, dict[int, list[Measured]]]


def main() -> int:
    """Returns the exit status."""
    options = _parse()
    # Whoever ends this program ends the servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(stderr=True)
    values = {sweep.name: sweep.quick if options.quick else sweep.values for sweep in SWEEPS}
    _allow_open_files(max(values["connections"]) + _OTHER_FILES)
    surroundings, at = Surroundings(), datetime.now(UTC)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        tempfile.TemporaryDirectory(prefix="meshmint-engine-", dir=options.directory) as directory,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        task = progress.add_task("", total=options.rounds * sum(map(len, values.values())))
        plan = Plan(Path(directory), options.seconds)
        try:
            found = _run(
                plan,
                values,
                options.rounds,
                lambda what, done: progress.update(task, description=what, advance=done),
            )
        except BadRun as error:
            console.print(f"[red]These would not be figures:[/] {error}")
            return 1
    whole = {
        "command": options.command,
        "at": at.isoformat(timespec="seconds"),
        "machine": surroundings.machine(),
        "versions": surroundings.versions(SQLite=sqlite3.sqlite_version),
        "rounds": options.rounds,
        "seconds": options.seconds,
        **document(SWEEPS, found),
    }
    show(whole, Console(width=max(100, console.width)))
    if options.out is not None:
        text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        (options.out / "engine.json").write_text(text, "utf-8")
        (options.out / "engine.md").write_text(page(whole), "utf-8")
        (options.out / "engine.svg").write_text(plot(whole), "utf-8")
    return 0


def _run(
    plan: Plan, values: dict[str, tuple[int, ...]], rounds: int, tell: Callable[[str, int], None]
) -> Found:
    """Sweep by sweep; in each, values take turns, another one first in each round."""
    found: Found = {name: defaultdict(list) for name in values}
    for sweep in SWEEPS:
        chosen = values[sweep.name]
        tell(f"{sweep.name}: starting services", 0)
        with sweep.open(plan, chosen) as ask:
            for turn in range(rounds):
                first = turn % len(chosen)
                for value in (*chosen[first:], *chosen[:first]):
                    tell(f"{sweep.name}: {value:,}", 0)
                    found[sweep.name][value].append(ask(value))
                    tell(f"{sweep.name}: {value:,}", 1)
    return {name: dict(sorted(by_value.items())) for name, by_value in found.items()}


def _allow_open_files(count: int) -> None:
    """For h2load and the services, which inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        sys.exit(f"A process may open {hard} files here, and {count} are needed: ulimit -H -n")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-engine", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each value has its turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short turn of few values, written nowhere by itself",
    )
    parser.add_argument("--directory", help="where stores are (default: the temporary directory)")
    parser.add_argument("--out", type=Path, help="where the results go (default: docs/reference)")
    options = parser.parse_args()
    options.command = "make bench-engine" + (
        f" ENGINE_ARGS={' '.join(sys.argv[1:])!r}" if sys.argv[1:] else ""
    )
    if options.quick:
        options.rounds, options.seconds = 1, 1.0
    elif options.out is None:
        options.out = _REFERENCE
    return options


if __name__ == "__main__":
    sys.exit(main())
