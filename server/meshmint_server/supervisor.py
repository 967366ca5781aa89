"""Keeps N workers alive: starts, watches, replaces, reloads and drains them.

The supervisor never touches a key, a token or the store. Workers are spawned,
not forked, because PKCS#11 state and gRPC do not survive a fork; they share the
ports by SO_REUSEPORT.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import structlog
from prometheus_client import multiprocess

from meshmint_server.app import EXIT_CONFIG, run_worker
from meshmint_server.config import Config, ConfigError, HostPort

__all__ = ["Supervisor"]

log = structlog.get_logger(__name__)

HEARTBEAT_LIMIT = 30.0
START_LIMIT = 60.0
STABLE_AFTER = 60.0
FIRST_DELAY = 0.2
LONGEST_DELAY = 10.0
_METRICS = "meshmint-metrics."


@dataclass
class _Worker:
    """One worker process. Mutable: it is the supervisor's own book-keeping."""

    process: SpawnProcess
    pipe: Connection
    generation: int
    started: float
    last_beat: float
    is_serving: bool = False
    is_stopping: bool = False
    kill_at: float = field(default=float("inf"))


class Supervisor:
    """Runs `meshmintd serve`.

    Args:
        config: What to run.
        reload: Reads the configuration again, at SIGHUP.
    """

    def __init__(self, config: Config, reload: Callable[[], Config]) -> None:
        self._config = config
        self._reload = reload
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._generation = 0
        self._failures = 0
        self._start_at = 0.0
        self._is_stopping = False
        self._has_served = False
        self._exit_status = 0
        self._signals: list[int] = []

    def run(self) -> int:
        """Blocks until SIGTERM or SIGINT, and returns the exit status."""
        # gRPC's newer listener hands each read to threads of its own, and from there to ours:
        # the older one saves a fifth of the CPU time of a call. Workers read this as they start.
        os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
        with _metrics_directory(), _signals(self._signals) as wake, _reserved(self._config):
            while self._workers or not self._is_stopping:
                self._handle_signals()
                self._start_missing()
                self._watch(wake)
                self._retire_old_generation()
        return self._exit_status

    def _handle_signals(self) -> None:
        while self._signals:
            match self._signals.pop(0):
                case signal.SIGHUP:
                    self._reload_config()
                case _ if not self._is_stopping:
                    log.info("draining", seconds=self._config.drain.total_seconds())
                    self._is_stopping = True
                    for worker in self._workers:
                        self._stop(worker)
                case _:
                    log.warning("second signal: ending at once")
                    for worker in self._workers:
                        worker.process.kill()

    def _reload_config(self) -> None:
        try:
            config = self._reload()
        except ConfigError as error:
            log.error("configuration not reloaded; the old one stays", problem=str(error))
            return
        if config.listeners != self._config.listeners:
            log.error(
                "a change of an address to listen on needs a restart; nothing was reloaded",
                addresses=list(config.listeners),
            )
            return
        self._config = config
        self._generation += 1
        self._failures = 0
        log.info("configuration reloaded; replacing the workers", generation=self._generation)

    def _start_missing(self) -> None:
        now = time.monotonic()
        if self._is_stopping or now < self._start_at:
            return
        current = sum(w.generation == self._generation for w in self._workers)
        for _ in range(self._config.workers - current):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=run_worker, args=(self._config, theirs), name="meshmint-worker"
            )
            with _interrupts_ignored():
                process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours, self._generation, now, now))

    def _watch(self, wake: socket.socket) -> None:
        """Waits for news, at most half a second."""
        sources: list[object] = [wake]
        sources += [worker.process.sentinel for worker in self._workers]
        sources += [worker.pipe for worker in self._workers if not worker.pipe.closed]
        for source in wait(sources, timeout=0.5):  # type: ignore[arg-type]
            if source is wake:
                wake.recv(64)
        now = time.monotonic()
        for worker in list(self._workers):
            self._read(worker, now)
            if not worker.process.is_alive():
                self._bury(worker, now)
            elif now > worker.kill_at:
                log.error("worker did not drain in time; killing it", pid=worker.process.pid)
                worker.process.kill()
            elif now - worker.last_beat > (HEARTBEAT_LIMIT if worker.is_serving else START_LIMIT):
                log.error("worker gives no sign of life; killing it", pid=worker.process.pid)
                worker.process.kill()

    def _read(self, worker: _Worker, now: float) -> None:
        try:
            while not worker.pipe.closed and worker.pipe.poll():
                message = worker.pipe.recv()
                worker.last_beat = now
                if message == "serving":
                    worker.is_serving = self._has_served = True
        except (EOFError, OSError):
            worker.pipe.close()

    def _bury(self, worker: _Worker, now: float) -> None:
        worker.process.join()
        worker.pipe.close()
        self._workers.remove(worker)
        if (pid := worker.process.pid) is not None:
            multiprocess.mark_process_dead(pid, os.environ["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]
        if worker.is_stopping:
            return
        status = worker.process.exitcode
        if status == EXIT_CONFIG and not self._has_served:
            # The worker has said what is wrong; a restart would only say it again.
            self._is_stopping = True
            self._exit_status = EXIT_CONFIG
            for other in self._workers:
                self._stop(other)
            return
        self._failures = 0 if now - worker.started > STABLE_AFTER else self._failures + 1
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(self._failures, 10))
        self._start_at = now + delay
        log.error("worker ended; replacing it", pid=pid, status=status, delay_seconds=delay)

    def _stop(self, worker: _Worker) -> None:
        if not worker.is_stopping:
            worker.is_stopping = True
            worker.kill_at = time.monotonic() + self._config.drain.total_seconds() + 5
            worker.process.terminate()

    def _retire_old_generation(self) -> None:
        """Old workers go once as many new ones serve as are wanted."""
        serving = sum(w.is_serving and w.generation == self._generation for w in self._workers)
        if serving >= self._config.workers:
            for worker in self._workers:
                if worker.generation < self._generation:
                    self._stop(worker)


@contextlib.contextmanager
def _metrics_directory() -> Iterator[None]:
    """Where workers write their metrics to files, so that each can show all."""
    _remove_abandoned()
    while True:
        directory = tempfile.mkdtemp(prefix=_METRICS)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.isdir(directory):
            break
        os.close(lock)  # taken for abandoned before it was locked
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    try:
        yield
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _remove_abandoned() -> None:
    """What supervisors that were killed have left: nobody holds a lock on it.

    Process ids would tell less: who shares this folder may count them for himself.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_METRICS}*"):
        # Not of another user, not locked, not gone meanwhile.
        with contextlib.suppress(OSError):
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(lock)


@contextlib.contextmanager
def _signals(received: list[int]) -> Iterator[socket.socket]:
    """Collects SIGTERM, SIGINT and SIGHUP; the socket becomes readable at each."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(n, lambda number, _frame: received.append(number)) for n in numbers]
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        reader.close()
        writer.close()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started here ignores Ctrl-C: the supervisor is who drains it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _reserved(config: Config) -> Iterator[None]:
    """Holds the TCP ports, so that no other server of this user can share them.

    SO_REUSEPORT alone would let a second server join in silence: so each port
    is first bound without it.

    Raises:
        ConfigError: A port is taken, or the address is not of this machine.
    """
    with contextlib.ExitStack() as held:
        for name, address in config.listeners.items():
            if isinstance(address, HostPort):
                held.enter_context(_hold(name, address))
        yield


def _hold(name: str, address: HostPort) -> socket.socket:
    family, kind, protocol, _, target = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    for exclusive in (True, False):
        holder = socket.socket(family, kind, protocol)
        # A closed listener's lingering connections must not stop a restart.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not exclusive:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            holder.bind(target)
        except OSError as error:
            holder.close()
            raise ConfigError(
                f"{name}: cannot listen on {address}: {error.strerror}; "
                "choose another port, or end what listens there"
            ) from error
        if exclusive:
            holder.close()
    return holder
