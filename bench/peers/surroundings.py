"""What the figures depend on beside the servers: the machine, versions, and who else used it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers.meshmint import Meshmint
from peers.processes import busy_seconds, cpu_seconds

__all__ = ["Surroundings"]


class Surroundings:
    """Those of the time from its making on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._others = self._used_by_others()

    def machine(self) -> dict[str, Any]:
        """The machine, and which share of its CPU time went to other programs so far."""
        cpuinfo = Path("/proc/cpuinfo").read_text()
        models = [line.split(":")[1] for line in cpuinfo.splitlines() if "model name" in line]
        cores = os.cpu_count() or 1
        used = self._used_by_others() - self._others
        return {
            "cpu": models[0].strip() if models else platform.machine(),
            "cores": cores,
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
            "kernel": f"{platform.system()} {platform.release()}",
            "others_share_of_cpu": round(used / cores / (time.monotonic() - self._began), 3),
        }

    def versions(self, **others: str) -> dict[str, str]:
        """What was run, with others by name."""
        printed = subprocess.run(
            ["h2load", "--version"], capture_output=True, text=True, check=True
        )
        return {
            "meshmint-server": Meshmint.version,
            **others,
            "h2load": printed.stdout.split("/")[-1].strip(),
            "Python": sys.version.split()[0],
        }

    def _used_by_others(self) -> float:
        # Servers and h2load are children of this process.
        return busy_seconds() - cpu_seconds([os.getpid()])
