"""Whether revoking slows down as revocations add up: `make bench-revoke`.

For SQLite and for PostgreSQL it starts a real `meshmintd serve` (TLS, SoftHSM, every
revocation on disk before its answer) on a store without revocations and on one with
100,000, and revokes certificates one after the other over gRPC, in several rounds that
take turns, so that whatever else the machine does meets both alike. It prints a table
and writes docs/reference/revoke.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.store import Store
from meshmint_server.store.schema import revocations
from sqlalchemy import insert
from support.postgres import PostgresServer, postgres_programs
from support.service import Service

RESULT = Path(__file__).parents[1] / "docs" / "reference" / "revoke.json"
STORES = ("sqlite", "postgresql")
SIZES = (0, 100_000)
WARM_UP = 20
_BATCH = 1_000


def main() -> int:
    """Measures, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each size has its turn")
    parser.add_argument("--calls", type=int, default=60, help="revocations in a round")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result goes")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    stores = {store: measure_store(store, options.rounds, options.calls) for store in STORES}
    report = {
        "what": "time of CertificateService/Revoke by serial number, one after the other, in "
        "milliseconds, by how many certificates are revoked already",
        "command": "make bench-revoke",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "calls": options.rounds * options.calls,
        "machine": {**machine(), "load_before": round(load_before, 2)},
        "versions": versions(),
        "stores": stores,
    }
    print(f"{'store':12}{'revoked':>10}{'median ms':>12}{'95th ms':>10}")
    for store, result in stores.items():
        for size in SIZES:
            times = result[str(size)]
            print(f"{store:12}{size:>10,}{times['median']:>12}{times['p95']:>10}")
        print(f"{store:12}{'ratio':>10}{result['ratio']:>12}")
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure_store(store: str, rounds: int, calls: int) -> dict[str, Any]:
    """The milliseconds at each size, and how the largest stands to none."""
    directory = Path(tempfile.mkdtemp(prefix="meshmint-revoke-"))
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    try:
        with databases(store, directory) as url_of, ExitStack() as running:
            services = {}
            for size in SIZES:
                # CRLs as often as by default.
                service = Service(
                    directory / f"service-{size}", store=url_of(size), workers=1, crl={}
                )
                asyncio.run(fill(str(service.config["store"]), size))
                service.start()
                running.callback(service.stop)
                services[size] = service, service.put_role({"spiffe": "own", "key_type": "ec"})
            for service, role in services.values():
                revoke_some(service, role, WARM_UP)
            for _ in range(rounds):
                for size, (service, role) in services.items():
                    times[size] += revoke_some(service, role, calls)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    medians = {size: statistics.median(found) for size, found in times.items()}
    return {
        **{
            str(size): {
                "median": round(medians[size], 2),
                "p95": round(statistics.quantiles(found, n=20)[-1], 2),
            }
            for size, found in times.items()
        },
        "ratio": round(medians[SIZES[-1]] / medians[SIZES[0]], 2),
    }


@contextmanager
def databases(store: str, directory: Path) -> Iterator[Callable[[int], str]]:
    """What gives the URL of an empty database for a size."""
    if store == "sqlite":
        yield lambda size: f"sqlite:///{directory}/{size}.db"
        return
    server = PostgresServer(settings=())  # as it comes: a commit waits for the disk
    try:
        yield lambda _size: server.url(asyncio.run(server.create_database()))
    finally:
        server.remove()


async def fill(url: str, size: int) -> None:
    """Puts revocations of live certificates of the issuer into the store."""
    store = Store.open(url)
    now = datetime.now(UTC)
    try:
        for start in range(0, size, _BATCH):
            rows = [
                {
                    "serial_number": f"7{secrets.token_hex(19)}",
                    "issuer": "issuer-1",
                    "shard": 0,
                    "reason": 1,
                    "revoked_at": now,
                    "not_after": now + timedelta(days=90),
                    "authenticator": "cluster",
                    "caller": "system:serviceaccount:shop:cart",
                    "request_id": secrets.token_hex(16),
                }
                for _ in range(min(_BATCH, size - start))
            ]
            await store.database.run(
                lambda connection, rows=rows: connection.execute(insert(revocations), rows),
                writes=True,
            )
    finally:
        await store.close()


def revoke_some(service: Service, role: str, calls: int) -> list[float]:
    """Issues and revokes so many certificates; the milliseconds of each revocation."""
    metadata = service.admin_metadata
    request = pb.IssueRequest(role=role)
    serials = [service.issue(request).serial_number for _ in range(calls)]
    times = []
    for serial in serials:
        asked = pb.RevokeRequest(
            serial_number=serial, reason=pb.REVOCATION_REASON_CESSATION_OF_OPERATION
        )
        started = time.perf_counter()
        answer = service.stub.Revoke(asked, timeout=30, metadata=metadata)
        times.append((time.perf_counter() - started) * 1000)
        assert not answer.already_revoked
    return times


def machine() -> dict[str, Any]:
    """What the figures were made on."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": os.cpu_count(),
        "processor": names[0] if names else platform.machine(),
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """What it was made with."""
    postgres = [str(postgres_programs() / "postgres"), "--version"]
    shown = subprocess.run(postgres, capture_output=True, text=True, check=True).stdout
    return {
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "PostgreSQL": shown.split()[2],
        **{name: version(name) for name in ("cryptography", "grpcio", "SQLAlchemy")},
    }


if __name__ == "__main__":
    sys.exit(main())
