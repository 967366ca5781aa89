"""What processes use, from /proc: CPU time and memory of whole trees."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["busy_seconds", "cpu_seconds", "resident_bytes"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")


def busy_seconds() -> float:
    """CPU time that the whole machine has used, with what its host took from it."""
    line = (_PROC / "stat").read_text().partition("\n")[0]
    user, nice, system, _idle, _waiting, irq, softirq, stolen = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + stolen) / _TICKS


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that these processes and all below them have used, those that ended too."""
    # utime, stime, cutime and cstime: fields 14 to 17 of proc(5), the first two being cut off.
    ticks = sum(sum(map(int, _stat(pid)[11:15])) for pid in _with_children(pids))
    return ticks / _TICKS


def resident_bytes(pids: Iterable[int]) -> int:
    """Memory that these processes and all below them hold; what they share counts once."""
    total = 0
    for pid in _with_children(pids):
        found = re.search(
            r"^Pss: +(\d+) kB$", (_PROC / str(pid) / "smaps_rollup").read_text(), re.MULTILINE
        )
        total += int(found[1]) * 1024 if found else 0
    return total


def _with_children(pids: Iterable[int]) -> set[int]:
    parents: dict[int, int] = {}
    for entry in _PROC.iterdir():
        # A process may end between the listing and the look.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit():
                parents[int(entry.name)] = int(_stat(int(entry.name))[1])
    wanted = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    return wanted


def _stat(pid: int) -> list[str]:
    """Fields from the third on; the second, the name, may hold spaces and brackets."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
