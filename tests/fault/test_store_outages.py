"""A running service whose store fails it: full, locked, restarted, gone in the middle of load.

Whatever happens, no certificate is handed out that is not on record, callers are told to
try again, and `/readyz` says what is true.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from support.callers import TEMPORARY, Callers, Held, put_callers_role
from support.postgres import PostgresServer
from support.reconciliation import compare, reconcile
from support.service import Service, ServiceFactory

# Gives the server a file system of its own below `disk`, which goes when the server goes.
_SMALL_DISK = """
mount -t tmpfs -o size=16m,mode=0700 meshmint-test "$1/new"
cp -p "$1"/disk/* "$1/new"
mount --bind "$1/new" "$1/disk"
shift
exec "$@"
"""


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the test may stop, as durable as a real one."""
    server = PostgresServer(("shared_buffers=32MB",))
    yield server
    server.remove()


@pytest.fixture
def service_on_small_disk(tmp_path: Path) -> Iterator[Service]:
    """A running service whose SQLite file lies on a disk of 16 MiB."""
    directory = tmp_path / "service"
    for name in ("disk", "new"):
        (directory / name).mkdir(parents=True)
    service = Service(directory, workers=1, store=f"sqlite:///{directory}/disk/meshmint.db")
    service.starter = _with_small_disk(directory)
    service.start()
    yield service
    service.stop()


def _with_small_disk(directory: Path) -> tuple[str, ...]:
    found = shutil.which("unshare")
    if found is None:
        pytest.fail("'unshare' is missing: install the system package util-linux")
    alone = [found, "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    tried = subprocess.run(
        [*alone, "mount", "-t", "tmpfs", "meshmint-test", directory / "new"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        pytest.fail(
            "a disk that gets full needs a mount, as root or in a user namespace: "
            + tried.stderr.strip()
        )
    return (*alone, "sh", "-ec", _SMALL_DISK, "sh", str(directory))


def readiness(service: Service) -> tuple[int, str]:
    """What `/readyz` says: status and reason."""
    try:
        with urllib.request.urlopen(service.http_url + "/readyz", timeout=10) as response:  # noqa: S310 - loopback
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_until_readiness_is(service: Service, status: int) -> str:
    """Waits, generously, and returns the reason."""
    ends = time.monotonic() + 60
    while (told := readiness(service))[0] != status:
        assert time.monotonic() < ends, told
        time.sleep(0.1)
    return told[1]


def wait_for_refusals(callers: Callers, count: int = 5) -> None:
    """Waits until callers were told that something is wrong."""
    wanted, ends = len(callers.errors) + count, time.monotonic() + 60
    while len(callers.errors) < wanted:
        assert time.monotonic() < ends
        time.sleep(0.02)


def fill(disk: Path) -> Path:
    """Takes all the room that is left; returns the file to delete."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))  # a page: no room is left for less
    return filler


def test_a_full_disk_refuses_what_it_cannot_record_and_recovers_with_room(
    service_on_small_disk: Service,
) -> None:
    service = service_on_small_disk
    role = put_callers_role(service)
    # The disk as the server sees it; nobody else does.
    disk = Path(f"/proc/{service.process.pid}/root{service.directory}/disk")
    with Callers([service], role) as callers:
        callers.wait_for_more(20)
        filler = fill(disk)
        wait_for_refusals(callers)
        reason = wait_until_readiness_is(service, 503)
        assert "STORE_UNAVAILABLE" in reason
        # All of the disk is taken: from here on nothing can be recorded, so nothing is got.
        got = len(callers.held)
        wait_for_refusals(callers, 20)
        assert len(callers.held) == got
        filler.unlink()
        wait_until_readiness_is(service, 200)
        callers.wait_for_more(20)
    assert callers.faults == []
    assert callers.codes() <= TEMPORARY
    check_records(callers.held, copy_database(service, disk))


def copy_database(service: Service, disk: Path) -> Path:
    """What SQLite here can read: it follows links, and would look outside the server's disk."""
    copy = service.directory / "copy"
    copy.mkdir()
    workers = service.worker_pids()
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)  # both files of one moment
    for name in ("meshmint.db", "meshmint.db-wal"):
        shutil.copy(disk / name, copy)
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    return copy / "meshmint.db"


def check_records(held: list[Held], database: Path) -> None:
    """Every certificate that is held is on record, and none is there twice."""
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT serial_number, certificate FROM records").fetchall()
    found = compare(held, [(serial, der, (serial,)) for serial, der in rows])
    assert found.issued > 0
    assert (found.lost, found.doubled) == ((), ())


def test_a_sqlite_file_that_stays_locked_is_told_and_nothing_is_lost(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start() as service:
        role = put_callers_role(service)
        database = service.directory / "meshmint.db"
        with (
            Callers([service], role) as callers,
            closing(sqlite3.connect(database, isolation_level=None)) as holder,
        ):
            callers.wait_for_more(20)
            holder.execute("BEGIN IMMEDIATE")
            wait_for_refusals(callers)
            wait_until_readiness_is(service, 503)
            holder.execute("ROLLBACK")
            wait_until_readiness_is(service, 200)
            callers.wait_for_more(20)
        assert callers.faults == []
        assert callers.codes() <= TEMPORARY
        check_records(callers.held, database)


async def test_postgresql_that_drops_everything_under_load_loses_nothing(
    service_factory: ServiceFactory, own_postgres: PostgresServer
) -> None:
    url = own_postgres.url(await own_postgres.create_database())
    with service_factory.start(store=url) as service:
        role = put_callers_role(service)
        with Callers([service], role) as callers:
            callers.wait_for_more(40)
            # A restart, in the midst of commits: "immediate" ends every session at once.
            own_postgres.stop(signal.SIGQUIT)
            own_postgres.start()
            callers.wait_for_more(40)
            # And gone, until everybody knows.
            own_postgres.stop(signal.SIGQUIT)
            wait_for_refusals(callers)
            wait_until_readiness_is(service, 503)
            got = len(callers.held)
            wait_for_refusals(callers, 20)
            assert len(callers.held) == got
            own_postgres.start()
            wait_until_readiness_is(service, 200)
            callers.wait_for_more(40)
        assert callers.faults == []
        assert callers.codes() <= TEMPORARY
        found = await reconcile(url, callers.held, role)
    assert (found.lost, found.doubled) == ((), ())
