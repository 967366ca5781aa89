"""bench/agent: the layout is what the page says, and table and page show what was measured."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from agent.__main__ import _LAYOUTS
from agent.layout import ROOTS, SHARED, Layout
from agent.measuring import Use
from agent.phases import Plan, Push
from agent.report import Measured, Report, page
from rich.console import Console

ROOT = Path(__file__).parents[2]
LAYOUT = Layout(certificates=20, outputs=5, sockets=4, connections=8)


@pytest.mark.parametrize("layout", [*_LAYOUTS, LAYOUT])
def test_every_certificate_is_on_a_socket_and_every_stream_is_told_of_what_its_socket_serves(
    layout: Layout, tmp_path: Path
) -> None:
    assert {n for socket in range(layout.sockets) for n in layout.served(socket)} == set(
        layout.names
    )
    served = {one["path"]: set(one["certificates"]) for one in layout.socket_sections(tmp_path)}
    connections = list(layout.clients(tmp_path))
    streams = [(one.path, stream) for one in connections for stream in one.streams]
    assert len(streams) == layout.streams
    assert len(set(Counter(one.path for one in connections).values())) == 1
    methods = Counter(stream.method for _, stream in streams)
    assert methods["StreamSecrets"] + methods["DeltaSecrets"] == layout.streams // 2
    assert all(methods[one] for one in ("FetchX509Bundles", "FetchJWTBundles", "DeltaSecrets"))
    for path, stream in streams:
        certificates = stream.watches - {ROOTS}
        assert certificates <= served[path]
        if stream.method == "FetchX509SVID":
            assert certificates == served[path]
        assert (SHARED in certificates) == ("Bundles" not in stream.method)


def test_the_full_size_is_that_of_the_issue() -> None:
    assert {(one.certificates, one.streams) for one in _LAYOUTS} == {(500, 2000)}


def test_certificates_have_their_own_names_and_some_outputs(tmp_path: Path) -> None:
    sections = LAYOUT.certificate_sections(tmp_path, {"": {"jitter": 0}, SHARED: {"jitter": 0.1}})
    assert [one["name"] for one in sections] == list(LAYOUT.names)
    assert len({one["names"]["uris"][0] for one in sections}) == 20
    assert sum(bool(one["outputs"]) for one in sections) == 5
    assert [one["renewal"]["jitter"] for one in sections[:2]] == [0.1, 0]


def use(memory: float) -> Use:
    return Use(memory, memory + 10, 1.0, 100, 20)


def push(*delays: float, obtained: float = 0.0) -> Push:
    return Push(obtained, delays, max(delays), 72, 100, 1.25, 0.5)


def report() -> Report:
    first = Measured(
        LAYOUT,
        fresh=[3.0, 2.0, 4.0],
        kept=[1.0, 1.0, 1.0],
        alone=use(80),
        opened=0.5,
        listening=use(100),
        at_rest=0.25,
        pushes={
            "all": [push(0.1, 0.3, 0.9, obtained=2.0)],
            "one": [push(0.2), push(0.4), push(0.3)],
            "root": [push(0.6)],
        },
        end=use(120),
    )
    second = Measured(
        Layout(certificates=20, outputs=5, sockets=1, connections=8),
        kept=[1.5],
        alone=use(81),
        opened=1.5,
        listening=use(101),
        pushes={"one": [push(0.7)]},
        end=use(121),
    )
    return Report(
        command="make bench-agent",
        at=datetime(2026, 1, 1, tzinfo=UTC),
        machine={"cpu": "any", "cores": 2, "memory_gib": 8, "others_share_of_cpu": 0.014},
        versions={"Python": "3.11", "grpcio": "1.85"},
        plan=Plan(),
        measured=[first, second],
    )


def test_the_document_has_medians_and_the_most() -> None:
    document = report().document()
    first, second = document["layouts"]
    assert (document["certificates"], document["streams"]) == (20, 80)
    assert first["start_s"] == {
        "fresh": {"median": 3.0, "most": 4.0}, "kept": {"median": 1.0, "most": 1.0},
    }  # fmt: skip
    assert first["memory_mib"] == {
        "certificates": 80, "with_streams": 100, "in_the_end": 120, "most": 130,
    }  # fmt: skip
    assert first["cpu_at_rest_s_per_minute"] == 0.25
    assert first["pushes"]["one"]["last_s"] == {"median": 0.3, "most": 0.4}
    assert first["pushes"]["all"]["delay_s"] == {"median": 0.3, "most": 0.9}
    assert "fresh" not in second["start_s"]
    assert "cpu_at_rest_s_per_minute" not in second


def test_table_and_page_tell_the_figures(tmp_path: Path) -> None:
    made = report()
    console = Console(record=True, width=160)
    made.print(console)
    printed = console.export_text()
    made.write(tmp_path)
    document = json.loads((tmp_path / "agent-size.json").read_text())
    told = (tmp_path / "agent-size.md").read_text()
    assert told == page(document)
    for label, figure in [
        ("start, with nothing kept", "3.00 s, most 4.00 s"),
        ("memory, with the streams", "100 MiB"),
        ("CPU at rest, of a minute", "0.25 s"),
        ("one renewed that all have: until the last push", "0.30 s, most 0.40 s"),
        ("all renewed at once: until the last is there", "2.00 s"),
    ]:
        assert any(label in line and figure in line for line in printed.splitlines()), label
        assert any(label in line and figure in line for line in told.splitlines()), label
    assert "other programs took 1% of\nits CPU time" in told


def test_the_page_in_the_reference_is_made_of_its_numbers() -> None:
    reference = ROOT / "docs" / "reference"
    document = json.loads((reference / "agent-size.json").read_text())
    assert (reference / "agent-size.md").read_text() == page(document)
    assert (document["certificates"], document["streams"]) == (500, 2000)
