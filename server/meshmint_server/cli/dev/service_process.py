"""The development service itself: `meshmintd serve`, as a process of its own.

It is the real command with the real configuration file, so that what is shown
here is what runs in earnest. Its log goes to a file; decisions are also told on
the terminal, once there is something to read beside them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from meshmint_server.app import signalled_at_end_of_parent
from meshmint_server.cli.terminal import Failure, out

__all__ = ["ServiceProcess"]

START_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
_LINES_OF_A_FAILURE: Final = 5


class ServiceProcess:
    """A running service.

    Attributes:
        has_ended: Set once the process is gone.
    """

    def __init__(self, process: subprocess.Popen[str], log: TextIO) -> None:
        self._process = process
        self._log = log
        self._last: deque[str] = deque(maxlen=_LINES_OF_A_FAILURE)
        self._is_telling = False
        self.has_ended = threading.Event()
        self._reader = threading.Thread(target=self._read, name="service-log", daemon=True)
        self._reader.start()

    @classmethod
    @contextlib.contextmanager
    def running(cls, config: Path, log: Path) -> Iterator[ServiceProcess]:
        """Starts it, and ends it with the block."""
        with log.open("w", encoding="utf-8", buffering=1) as file:
            log.chmod(0o600)
            service = cls(
                # A session of its own: Ctrl-C is for us, and we drain it in order.
                subprocess.Popen(  # noqa: S603 - this interpreter, this package
                    [sys.executable, "-m", "meshmint_server.cli", "serve", "-c", str(config)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,
                    # No other thread is running yet that could hold a lock.
                    preexec_fn=_drain_with_parent,  # noqa: PLW1509
                ),
                file,
            )
            try:
                yield service
            finally:
                service.stop()

    def wait_until_ready(self, target: str, roots: Path) -> None:
        """Waits until the service says over gRPC that it can issue.

        Raises:
            Failure: It ended, or did not get ready in time; with its last words.
        """
        give_up_at = time.monotonic() + START_SECONDS
        credentials = grpc.ssl_channel_credentials(roots.read_bytes())
        while not self.has_ended.is_set():
            if time.monotonic() > give_up_at:
                raise Failure("the service did not get ready in time; it said:", self._words())
            # A channel of its own each time: a channel would wait longer and longer.
            with grpc.secure_channel(target, credentials) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
                except grpc.RpcError:
                    pass
                else:
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
            self.has_ended.wait(0.1)
        raise Failure("the service ended at its start; it said:", self._words())

    def tell(self) -> None:
        """From now on decisions are printed, one line each."""
        self._is_telling = True

    def stop(self) -> int:
        """Drains and ends it; returns its exit status."""
        self._is_telling = False
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_SECONDS)
        return self._process.returncode

    def failure(self) -> Failure:
        """Why it ended without having been asked to."""
        return Failure("the service has ended by itself; it said:", self._words())

    def _words(self) -> list[str]:
        return [*self._last, f"The whole log: {self._log.name}"]

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            self._log.write(line)
            self._last.append(line.rstrip()[:500])
            if self._is_telling:
                _tell(line)
        self.has_ended.set()


def _tell(line: str) -> None:
    try:
        entry = json.loads(line)
    except ValueError:
        return
    if not isinstance(entry, dict) or entry.get("type") != "audit":
        return
    moment = str(entry.get("time", ""))[11:19]
    granted = entry.get("decision") == "granted"
    out.print(f"{moment} [{'good' if granted else 'bad'}]{entry.get('decision')}[/] ", end="")
    shown = ("rpc", "caller", "role", "spiffe_id", "serial", "reason", "change")
    out.print("  ".join(str(entry[name]) for name in shown if entry.get(name)), markup=False)


def _drain_with_parent() -> None:
    signalled_at_end_of_parent(signal.SIGTERM)
