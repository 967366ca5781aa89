"""`make bench`: compares, prints tables, and writes bench.json and bench.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from peers.comparison import Comparison, Plan
from peers.load import BadRun
from peers.openbao import OpenBao
from peers.page import page, show
from peers.surroundings import Surroundings
from peers.workload import WORKS

_REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def main() -> int:
    """Returns the exit status."""
    options = _parse()
    # Whoever ends this program ends the servers with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    plan = Plan(options.rounds, options.seconds)
    surroundings, at = Surroundings(), datetime.now(UTC)
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with (
        tempfile.TemporaryDirectory(prefix="meshmint-bench-", dir=options.directory) as directory,
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
    ):
        # The servers' start is a step of its own, and what is told is not done yet.
        task = progress.add_task("", total=plan.turns + 1, completed=-1)
        comparison = Comparison(
            plan,
            Path(directory),
            lambda what: progress.update(task, description=what, advance=1),
        )
        try:
            results = comparison.run()
        except BadRun as error:
            console.print(f"[red]These would not be figures:[/] {error}")
            return 1
        progress.update(task, description="done", advance=1)
    document = {
        "command": options.command,
        "at": at.isoformat(timespec="seconds"),
        "machine": surroundings.machine(),
        "versions": surroundings.versions(OpenBao=OpenBao.version),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        **results.document(WORKS),
    }
    show(document, Console(width=max(120, console.width)))
    if options.out is not None:
        text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        (options.out / "bench.json").write_text(text, "utf-8")
        (options.out / "bench.md").write_text(page(document), "utf-8")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each server")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each turn")
    parser.add_argument(
        "--quick", action="store_true", help="one round of short turns; writes nothing"
    )
    parser.add_argument("--directory", help="where stores are (default: the temporary directory)")
    parser.add_argument("--out", type=Path, default=_REFERENCE, help="where the results go")
    options = parser.parse_args()
    options.command = "make bench" + (
        f" BENCH_ARGS={' '.join(sys.argv[1:])!r}" if sys.argv[1:] else ""
    )
    if options.quick:
        options.rounds, options.seconds, options.out = 1, 0.7, None
    return options


if __name__ == "__main__":
    sys.exit(main())
