"""`meshmintd dev` as people run it: a process with a terminal's output, and Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Development", "free_pair", "meshmintd", "run_lines", "running_development"]

READY = "Serving."
START_SECONDS = 90.0
STOP_SECONDS = 40.0


def free_pair() -> int:
    """A free port whose next one is free, too; below those that the system hands out."""
    for _ in range(200):
        port = 20000 + 2 * secrets.randbelow(6000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 1))
            return port
    pytest.fail("no two free ports on 127.0.0.1")


def meshmintd(
    *arguments: object, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the operators' command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "meshmint_server.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


@dataclass
class Development:
    """One `meshmintd dev` that serves."""

    process: subprocess.Popen[str]
    output: Path
    port: int
    state: Path

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(encoding="utf-8")

    def wait_for(self, words: str, seconds: float = 10.0) -> None:
        """Waits until it has printed that."""
        give_up_at = time.monotonic() + seconds
        while words not in self.text():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                pytest.fail(f"meshmintd dev did not print {words!r}:\n{self.text()}")
            time.sleep(0.05)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(STOP_SECONDS)


@contextlib.contextmanager
def running_development(
    directory: Path, *arguments: object, state: str = ".meshmint", port: int | None = None
) -> Iterator[Development]:
    """Starts one in that directory and waits until it serves."""
    port = port or free_pair()
    output = directory / "dev.out"
    with output.open("w") as file:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "meshmint_server.cli", "dev",
                "--state", state, "--port", str(port), "--workers", "1", *map(str, arguments),
            ],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
    development = Development(process, output, port, directory / state)
    try:
        development.wait_for(READY, START_SECONDS)
        yield development
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_lines(lines: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Pastes lines into a shell, as a person does."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
