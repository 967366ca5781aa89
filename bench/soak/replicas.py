"""The replicas of a soak: started, watched, killed and started again, whole process trees.

Processes are found in /proc, below those that the soak started; nothing else is touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peers.processes import resident_bytes
from support.service import Service

__all__ = ["Replica", "Usage"]

_READY_SECONDS = 120
_WORKER: Final = b"multiprocessing.spawn"
_SIGNING: Final = b"meshmint_server.keys.signing_process"


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes hold at one moment.

    Attributes:
        memory: MiB; what they share counts once.
        descriptors: Open file descriptors.
    """

    memory: float
    descriptors: int

    @classmethod
    def of(cls, replicas: Sequence[Replica]) -> Usage:
        """Looks at all of them.

        Raises:
            OSError: A process ended meanwhile.
        """
        pids = [pid for replica in replicas for pid in replica.tree()]
        memory = resident_bytes([replica.service.process.pid for replica in replicas]) / 2**20
        return cls(memory, sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids))


class Replica:
    """One `meshmintd serve` of the set.

    Args:
        service: It, set up, perhaps not running yet.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self._starts = 0

    def start(self) -> None:
        """Starts it, with a log of its own, and waits until all its workers serve."""
        self._starts += 1
        log = self.service.log_path
        self.service.log_path = log.with_name(f"{log.name.partition('.')[0]}.{self._starts}.log")
        self.service.start()

    def kill(self) -> None:
        """kill -9 of all that it consists of."""
        self.service.channel.close()
        # From the top, so that nobody replaces what was killed.
        for pid in [self.service.process.pid, *self.tree()]:
            _send(pid, signal.SIGKILL)
        self.service.process.wait()

    def end(self) -> None:
        """Drains it; what a fault left stopped is killed."""
        for pid in self.tree():
            _send(pid, signal.SIGCONT)
        try:
            self.service.stop()
        finally:
            for pid in self.tree():
                _send(pid, signal.SIGKILL)

    def tree(self) -> list[int]:
        """The process and all below it."""
        found = [self.service.process.pid]
        for pid in found:
            found += _children(pid)
        return found

    def workers(self) -> list[int]:
        """Its workers, starting ones too."""
        return [pid for pid in self.tree() if _WORKER in _command(pid)]

    def signing_processes(self) -> list[int]:
        """Those of its workers."""
        return [pid for pid in self.tree() if _SIGNING in _command(pid)]

    def is_whole(self) -> bool:
        """Whether it has its workers, each with its signing process, and says that it is ready."""
        wanted = self.service.workers
        # All have the port in common: one that is not ready shows in some of the answers.
        return len(self.workers()) == len(self.signing_processes()) == wanted and all(
            self._says_ready() for _ in range(3 * wanted)
        )

    def _says_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.service.http_url + "/readyz", timeout=5) as answer:  # noqa: S310 - loopback
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait_until_whole(self) -> None:
        """Waits until it has recovered.

        Raises:
            TimeoutError: It does not.
        """
        ends = time.monotonic() + _READY_SECONDS
        while not self.is_whole():
            if time.monotonic() > ends:
                raise TimeoutError(
                    f"a replica does not recover; the end of its log, {self.service.log_path}:\n"
                    + self.service.whole_log()[-4000:]
                )
            time.sleep(0.2)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    # One list for each thread, of those that it started; a process may end meanwhile.
    with contextlib.suppress(OSError):
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, listed.read_text().split())
    return found


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
