"""bench/soak: what is lost or minted twice is found, told, and fails the run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console
from soak.replicas import Usage
from soak.report import Report
from support.callers import Held
from support.reconciliation import compare

HELD = [Held("0a", b"first"), Held("0b", b"second")]
ROWS = [("0a", b"first", ("DNS:a",)), ("0b", b"second", ("DNS:b",))]


def report(**changes: object) -> Report:
    made = Report(
        command="make soak",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=60,
        seed=1,
        machine={"cores": 2, "processor": "any", "memory_gib": 4},
        versions={"Python": "3.11"},
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_what_is_on_record_is_neither_lost_nor_doubled() -> None:
    found = compare(HELD, [*ROWS, ("0c", b"third", ("DNS:c",))])
    assert (found.issued, found.lost, found.doubled, found.unclaimed) == (2, (), (), 1)


@pytest.mark.parametrize("rows", [ROWS[:1], [ROWS[0], ("0b", b"another", ("DNS:b",))]])
def test_a_certificate_that_is_not_on_record_byte_for_byte_is_lost(
    rows: list[tuple[str, bytes, tuple[str, ...]]],
) -> None:
    assert compare(HELD, rows).lost == ("0b",)


def test_a_serial_number_of_two_certificates_is_doubled() -> None:
    assert compare([*HELD, Held("0a", b"another")], ROWS).doubled == ("0a",)


def test_two_certificates_for_one_request_are_doubled() -> None:
    found = compare(HELD, [*ROWS, ("0c", b"third", ("DNS:b",))])
    assert (found.doubled, found.lost) == (("DNS:b",), ())


@pytest.mark.parametrize(("rows", "status"), [(ROWS, 0), (ROWS[:1], 1), ([*ROWS, ROWS[1]], 1)])
def test_the_exit_status_tells(rows: list[tuple[str, bytes, tuple[str, ...]]], status: int) -> None:
    assert report(reconciliation=compare(HELD, rows)).status == status


def test_memory_that_grows_is_called_not_flat(tmp_path: Path) -> None:
    usage = [Usage(100 + 10 * step, 50) for step in range(9)]
    made = report(
        usage=usage, recoveries={"worker killed": [1.0, 3.0]}, reconciliation=compare(HELD, ROWS)
    )
    made.write(tmp_path)
    document = json.loads((tmp_path / "soak.json").read_text())
    assert document["issued"] == 2
    assert document["lost"] == document["doubled"] == 0
    assert document["faults"] == 2
    assert document["faults_by_kind"] == {"worker killed": 2}
    assert document["memory_mib"]["ratio"] == round(170 / 110, 2)
    told = (tmp_path / "soak.md").read_text()
    assert "| memory, MiB | 110 to 170 (1.55, not flat) |" in told
    assert "| file descriptors | 50 to 50 (1.00) |" in told
    console = Console(record=True, width=100)
    made.print(console)
    assert "not flat" in console.export_text()
