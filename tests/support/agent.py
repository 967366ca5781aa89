"""`meshmint agent` as people run it: a process with a configuration file and a log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.service import free_port

__all__ = ["AgentProcess", "meshmint"]

WAIT_SECONDS = 60.0
STOP_SECONDS = 30.0


def meshmint(
    *arguments: object, environment: dict[str, str] | None = None, seconds: float = 60
) -> subprocess.CompletedProcess[str]:
    """Runs the users' command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "meshmint", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


class AgentProcess:
    """One agent, with a directory of its own.

    Attributes:
        config: What stands in its configuration file; `write_config` writes it.
        environment: Of the process, beside that of the tests.
    """

    def __init__(self, directory: Path, address: str, ca_file: Path, **sections: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.path = directory / "agent.yaml"
        self.log_path = directory / "agent.log"
        self.state = directory / "state"
        self.token_file = directory / "token"
        self.environment: dict[str, str] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.config: dict[str, Any] = {
            "server": {"address": address, "ca_file": str(ca_file), "timeout": "5s"},
            "auth": {"token_file": str(self.token_file)},
            "state_dir": str(self.state),
            "certificates": [{"name": "web"}],
            "health": f"127.0.0.1:{free_port()}",
            **sections,
        }

    def write_config(self, **sections: Any) -> None:
        """Writes the file; the agent is not told."""
        self.config |= sections
        self.path.write_text(yaml.safe_dump(self.config))

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs `meshmint agent` with this configuration, and more arguments, to its end."""
        return meshmint("agent", "-c", self.path, *arguments, environment=self.environment)

    def start(self) -> None:
        """Starts it, and waits for nothing."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "meshmint", "agent", "-c", str(self.path)],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @contextlib.contextmanager
    def running(self) -> Iterator[AgentProcess]:
        """Writes the configuration, starts, and stops in the end."""
        self.write_config()
        self.start()
        try:
            yield self
        finally:
            self.stop()

    def stop(self) -> int:
        """SIGTERM; returns the exit status. Nothing if it does not run."""
        if self.process is None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process = None

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def reload(self) -> None:
        """SIGHUP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def lines(self) -> list[dict[str, Any]]:
        """The log, line by line."""
        lines = []
        for text in self.log_path.read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(text))
        return lines

    def events(self, beginning: str, **fields: object) -> list[dict[str, Any]]:
        """The lines of an event, with these fields."""
        return [
            line
            for line in self.lines()
            if line["event"].startswith(beginning) and fields.items() <= line.items()
        ]

    def wait_for(self, beginning: str, count: int = 1, **fields: object) -> list[dict[str, Any]]:
        """Waits until that many lines of an event are there."""
        self.wait_until(lambda: len(self.events(beginning, **fields)) >= count, beginning)
        return self.events(beginning, **fields)

    def wait_until(self, is_so: Callable[[], bool], what: str = "it") -> None:
        """Waits until something is so."""
        give_up_at = time.monotonic() + WAIT_SECONDS
        while not is_so():
            if self.process is not None and self.process.poll() is not None:
                pytest.fail(f"the agent ended: {self.log_path.read_text()[-8000:]}")
            if time.monotonic() > give_up_at:
                pytest.fail(f"not {what}: {self.log_path.read_text()[-8000:]}")
            time.sleep(0.05)

    def get(self, page: str) -> tuple[int, str]:
        """Status and text of a page of its health address."""
        import httpx

        answer = httpx.get(f"http://{self.config['health']}{page}", timeout=10, trust_env=False)
        return answer.status_code, answer.text

    def status(self) -> dict[str, dict[str, Any]]:
        """What the running agent says of each certificate."""
        return {one["name"]: one for one in json.loads(self.get("/status")[1])["certificates"]}

    def serial(self, name: str = "web") -> str:
        """The serial number of a certificate, from the status."""
        return str(self.status()[name]["serial_number"])
