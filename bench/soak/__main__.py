"""Whether anything is lost while things break: `make soak`.

Two replicas of a real `meshmintd serve` (TLS, SoftHSM) on one PostgreSQL, callers that go on
asking and try again as clients do, and faults at random, one after the other. Then all that
callers hold is compared with the records. It prints a table, writes soak.json and soak.md,
and fails if a certificate was lost or minted twice.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from growth.report import surroundings
from meshmint import RetryPolicy
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from support.callers import Callers, put_callers_role
from support.postgres import PostgresServer
from support.reconciliation import reconcile
from support.service import Service

from soak.faults import Faults
from soak.replicas import Replica, Usage
from soak.report import Report

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

# Durable, unlike the one of the tests.
_POSTGRES = ("shared_buffers=64MB",)
_WORKERS = 2
# What a patient client is set to: a whole outage fits in.
_PATIENT = RetryPolicy(max_attempts=1000, max_delay=2.0)
_PATIENCE_SECONDS = 90.0
_QUIET_SECONDS = (1.0, 4.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs, prints and writes; returns the exit status."""
    options = _parse(arguments)
    console = Console(stderr=True)
    report = Report(
        command=_command(sys.argv[1:] if arguments is None else arguments),
        at=datetime.now(UTC),
        seconds=options.seconds,
        seed=options.seed,
        **surroundings(),
    )
    with tempfile.TemporaryDirectory(prefix="meshmint-soak-", dir=options.directory) as directory:
        _soak(Path(directory), options, report, console)
    report.print(Console(width=max(100, console.width)))
    report.write(options.out)
    return report.status


def _command(arguments: Sequence[str]) -> str:
    return f'make soak SOAK_ARGS="{" ".join(arguments)}"' if arguments else "make soak"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600, help="how long things break")
    parser.add_argument("--threads", type=int, default=8, help="callers, half for each replica")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between calls of one")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the faults"
    )
    parser.add_argument("--directory", help="where the state is made (default: the temporary one)")
    parser.add_argument("--out", type=Path, default=REFERENCE, help="where the results go")
    return parser.parse_args(arguments)


def _soak(directory: Path, options: argparse.Namespace, report: Report, console: Console) -> None:
    with ExitStack() as stack:
        console.print("starting PostgreSQL and two replicas")
        postgres = PostgresServer(_POSTGRES)
        stack.callback(postgres.remove)
        url = postgres.url(asyncio.run(postgres.create_database("soak")))
        first = Replica(Service(directory / "service", store=url, workers=_WORKERS))
        first.start()
        stack.callback(first.end)
        second = Replica(stack.enter_context(first.service.replica()))
        stack.callback(second.end)
        replicas = [first, second]
        role = put_callers_role(first.service)
        second.service.wait_until_everywhere(role)
        draw = random.Random(options.seed)  # noqa: S311 - chooses faults, not keys
        with Callers(
            [replica.service for replica in replicas], role,
            threads=options.threads, pause=options.pause,
            timeout=_PATIENCE_SECONDS, retry=_PATIENT,
        ) as callers:  # fmt: skip
            callers.wait_for_more(options.threads)
            report.usage.append(_usage(replicas))
            _break_things(Faults(replicas, postgres, draw), callers, options, report, console)
            # What was under way ends, and everybody is served again.
            callers.wait_for_more(10 * options.threads)
        if callers.faults:
            raise callers.faults[0]
        report.note(callers.errors)
        report.reconciliation = asyncio.run(reconcile(url, callers.held, role))


def _break_things(
    faults: Faults,
    callers: Callers,
    options: argparse.Namespace,
    report: Report,
    console: Console,
) -> None:
    """One fault after the other until time is over; each is over before the next comes."""
    began = time.monotonic()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console,
    ) as progress:  # fmt: skip
        task = progress.add_task("soaking", total=options.seconds)
        for kind in _order(list(faults.kinds), faults.draw):
            time.sleep(faults.draw.uniform(*_QUIET_SECONDS))
            if time.monotonic() - began > options.seconds:
                return
            progress.update(
                task,
                completed=time.monotonic() - began,
                description=f"{len(callers.held):,} issued; {kind}",
            )
            broken = time.monotonic()
            faults.kinds[kind]()
            for replica in faults.replicas:
                replica.wait_until_whole()
            report.recoveries[kind].append(time.monotonic() - broken)
            if callers.faults:
                raise callers.faults[0]
            report.usage.append(_usage(faults.replicas))


def _order(kinds: list[str], draw: random.Random) -> Iterator[str]:
    """All kinds in some order, and again in another, for ever: each has its turn."""
    while True:
        yield from draw.sample(kinds, len(kinds))


def _usage(replicas: list[Replica]) -> Usage:
    """Of a whole set: of three looks, each while processes may come and go, the middle one."""
    looks: list[Usage] = []
    while len(looks) < 3:
        try:
            looks.append(Usage.of(replicas))
        except OSError:  # a process ended between being found and being looked at
            time.sleep(0.1)
    return Usage(
        statistics.median(look.memory for look in looks),
        statistics.median_low([look.descriptors for look in looks]),
    )


if __name__ == "__main__":
    sys.exit(main())
