"""`make simulate-fleet`: simulates, prints tables, writes fleet.json, fleet.md and fleet.svg."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fleet.course import BIN, STEP
from fleet.measured import Replica
from fleet.page import page, show
from fleet.plan import CHOICES, COARSER, REPLICAS, Key, tasks
from fleet.plot import plot
from fleet.scenarios import BEFORE, EVENTS, WITHIN, Scenario, Search, rest_rate
from fleet.simulation import Absence, Fleet, Restart

_WIDTH = 160
_OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"


def main() -> int:
    """Returns the exit status."""
    options = _parse()
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    wanted = tasks(options.one_in)
    began = time.monotonic()
    found: dict[Key, Any] = {}
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        ProcessPoolExecutor(options.jobs) as pool,
    ):
        bar = progress.add_task("simulating", total=len(wanted))
        running = {pool.submit(_run, task): key for key, task in wanted.items()}
        for done in as_completed(running):
            found[running[done]] = done.result()
            progress.update(bar, advance=1)
    made = _document(options, {key: found[key] for key in wanted})
    made["seconds"] = round(time.monotonic() - began)
    show(made, Console(width=max(_WIDTH, console.width)))
    (options.out / "fleet.json").write_text(_text(made), encoding="utf-8")
    (options.out / "fleet.md").write_text(page(made), encoding="utf-8")
    (options.out / "fleet.svg").write_text(plot(made), encoding="utf-8")
    return 0


def _run(task: Scenario | Search) -> Any:
    return task.run()


def _document(options: argparse.Namespace, found: dict[Key, Any]) -> dict[str, Any]:
    fleet, restart, away = Fleet(), EVENTS["containers"], EVENTS["away"]
    assert isinstance(restart, Restart)
    assert isinstance(away, Absence)
    document: dict[str, Any] = {
        "command": " ".join(["make simulate-fleet", *_arguments(sys.argv[1:])]),
        "one_in": options.one_in,
        "coarser": COARSER,
        "bin_s": BIN,
        "step_s": STEP,
        "before_s": BEFORE,
        "within_s": WITHIN,
        "replicas": REPLICAS,
        "fleet": {"workloads": fleet.workloads, **_settings(fleet)},
        "rest_rate": round(rest_rate(fleet), 1),
        "restart": asdict(restart),
        "away_s": away.seconds,
        "replica": asdict(Replica.measured()),
        "choices": {name: _settings(chosen) for name, chosen in CHOICES.items()},
    }
    for key, value in found.items():
        place = document
        for part in key[:-1]:
            place = place.setdefault(part, {})
        place[key[-1]] = value
    return document


def _settings(fleet: Fleet) -> dict[str, float]:
    renewal = fleet.renewal
    return {
        "rest_rate": round(rest_rate(fleet), 1),
        "lifetime_s": fleet.lifetime,
        "fraction": renewal.fraction,
        "jitter": renewal.jitter,
    }


def _text(document: dict[str, Any]) -> str:
    """As JSON, each series on a line of its own."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"


def _arguments(given: list[str]) -> list[str]:
    return [f"FLEET_ARGS='{' '.join(given)}'"] if given else []


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fleet", description=__doc__)
    parser.add_argument("--one-in", type=int, default=50, help="simulate one workload of so many")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at the same time")
    parser.add_argument("--out", type=Path, default=_OPERATIONS, help="where the results go")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
