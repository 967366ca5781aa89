"""bench/agent does not rot: it runs, and every stream reads what it is to read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(300)  # a service and two starts of an agent, beside other tests
def test_the_bench_runs_small_and_writes_its_table(tmp_path: Path) -> None:
    more = [str(ROOT / "tests"), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-m", "agent", "--quick", "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(more)},
        capture_output=True, text=True, check=False, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent-size.json", "agent-size.md"]
    found = json.loads((tmp_path / "agent-size.json").read_text())
    assert (found["certificates"], found["streams"]) == (20, 80)
    # 80 streams, 8 of them of bundles, half of these of JWT bundles.
    (layout,) = found["layouts"]
    one, root, every = (layout["pushes"][kind] for kind in ("one", "root", "all"))
    assert one["streams"] == every["streams"] == 72
    assert root["streams"] == 76
    # What was sent less often was not read by all.
    assert one["messages"] >= 72
    assert root["messages"] >= 76
    assert every["messages"] >= 72
    memory, descriptors = layout["memory_mib"], layout["descriptors"]
    assert 0 < memory["certificates"] <= memory["most"]
    # A connection is a descriptor; a stream is none.
    assert 0 < descriptors["with_streams"] - descriptors["certificates"] < 40
    assert layout["start_s"]["kept"]["median"] > 0
    assert layout["cpu_at_rest_s_per_minute"] >= 0
    assert "20 certificates, 80 streams" in done.stdout
