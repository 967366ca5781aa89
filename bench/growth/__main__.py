"""Whether a service slows down as its store grows: `make growth`.

For SQLite and for PostgreSQL it fills one store for each size with records, starts a real
`meshmintd serve` on each (TLS, SoftHSM, every record durable before its answer), and calls
them in turn, so that whatever else the machine does meets all sizes alike. It prints a
table, and writes growth.json and growth.md.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from support.postgres import PostgresServer

from growth.fill import PROBES
from growth.report import Measured, Report, surroundings
from growth.service import GrownService

STORES = ("sqlite", "postgresql")
SIZES = (0, 100_000, 1_000_000)
REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

# How a PostgreSQL is set that holds a million records, and loses none.
_POSTGRES = ("shared_buffers=512MB", "max_wal_size=4GB", "work_mem=16MB")
_CRLS = 3
_WARM_UP = 5  # calls of a kind that do not count


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit status."""
    options = _parse(arguments)
    console = Console(stderr=True)
    directory = Path(tempfile.mkdtemp(prefix="meshmint-growth-", dir=options.directory))
    report = Report(
        command=_command(sys.argv[1:] if arguments is None else arguments),
        at=datetime.now(UTC),
        rounds=options.rounds,
        **surroundings(),
    )
    try:
        for store in options.stores:
            with _databases(store, directory / store) as url_of:
                report.stores[store] = _measure_store(store, url_of, directory, options, console)
            shutil.rmtree(directory / store, ignore_errors=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    report.print(Console(width=max(120, console.width)))
    if options.out:
        report.write(options.out)
    return 0


def _command(arguments: Sequence[str]) -> str:
    return f'make growth GROWTH_ARGS="{" ".join(arguments)}"' if arguments else "make growth"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help="records, such as 0,1000")
    parser.add_argument("--stores", type=_stores, default=STORES, help="sqlite,postgresql")
    parser.add_argument("--rounds", type=int, default=5, help="how often each size has its turn")
    parser.add_argument("--calls", type=int, default=40, help="calls of a kind in a round")
    parser.add_argument(
        "--directory", help="where the stores are made (default: the temporary directory)"
    )
    parser.add_argument(
        "--out", type=Path, default=REFERENCE, help="where growth.json and growth.md go"
    )
    return parser.parse_args(arguments)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = tuple(sorted(int(size) for size in text.split(",")))
    if len(sizes) < 2:
        raise argparse.ArgumentTypeError("two sizes at least are needed to compare")
    return sizes


def _stores(text: str) -> tuple[str, ...]:
    stores = tuple(text.split(","))
    if not set(stores) <= set(STORES):
        raise argparse.ArgumentTypeError(f"the stores are {', '.join(STORES)}")
    return stores


@contextmanager
def _databases(store: str, directory: Path) -> Iterator[Callable[[int], str]]:
    """What makes an empty database for a size, and gives its URL."""
    directory.mkdir()
    if store == "sqlite":
        yield lambda size: f"sqlite:///{directory}/{size}.db"
        return
    server = PostgresServer(_POSTGRES)

    def make(size: int) -> str:
        return server.url(asyncio.run(server.create_database(f"growth_{size}")))

    try:
        yield make
    finally:
        server.remove()


def _measure_store(
    store: str,
    url_of: Callable[[int], str],
    directory: Path,
    options: argparse.Namespace,
    console: Console,
) -> dict[int, Measured]:
    services: dict[int, GrownService] = {}
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=console,
    ) as progress:  # fmt: skip
        for size in options.sizes:
            task = progress.add_task(f"{store}: filling {size:,}", total=size + PROBES)
            services[size] = GrownService(
                directory / store / f"service-{size}",
                url_of(size),
                size,
                crls=min(options.rounds, _CRLS),
                progress=partial(progress.advance, task),
            )
        order = deque(services.values())
        for _ in progress.track(range(options.rounds), description=f"{store}: measuring"):
            _measure_round(order, options.calls)
            order.rotate()
    return {size: service.result() for size, service in services.items()}


def _measure_round(services: Sequence[GrownService], calls: int) -> None:
    """Starts all, and has kinds of calls and services take turns: each meets the same machine.

    The new CRLs that follow upon the first revocations, too, meet all kinds alike.
    """
    with ExitStack() as stack:
        for service in services:
            service.start()
            stack.callback(service.stop)
        for number in range(-_WARM_UP, calls):
            for kind in services[0].calls:
                for service in services:
                    service.call(kind, is_timed=number >= 0)


if __name__ == "__main__":
    sys.exit(main())
