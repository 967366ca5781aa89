"""bench/engine: what sessions give is counted as it is, with no service in between."""

from __future__ import annotations

import os
from pathlib import Path

from engine.sessions import signatures_per_second
from support.hsm_shim import Shim, build_shim
from support.service import Service
from support.softhsm import require_module

BENCH = Path(__file__).parents[2] / "bench"


def test_sessions_give_no_more_than_one_signature_in_each_delay(tmp_path: Path) -> None:
    shim = Shim(build_shim(tmp_path), require_module(), tmp_path / "control")
    service = Service(tmp_path / "service", shim=shim)
    path = os.pathsep.join((str(BENCH), os.environ.get("PYTHONPATH", "")))
    shim.delay("C_Sign", 0.05)
    met = shim.met("C_Sign")
    rate = signatures_per_second(
        service.module, "meshmint", 1.0, processes=2, sessions=1,
        environment={**service.token_environment, "PYTHONPATH": path},
    )  # fmt: skip
    made = shim.met("C_Sign") - met
    shim.close()
    # 20 a second from each of two; both have counted all that they made.
    assert 0 < rate < 40
    assert rate <= made <= 42
