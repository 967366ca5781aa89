"""The queue in front of the threads that sign.

Signing blocks, may be slow, and cannot be cancelled; the event loop must not
wait for it without a limit. Jobs go into one bounded queue; a few threads (one,
unless the PKCS#11 module takes more) work them off and hand results back to
each job's own loop, many at a time. A job that nobody waits for any more is
skipped. A thread that hangs inside a call cannot be stopped from here: it is
reported by ``is_stuck``, and the process has to be replaced.

Nothing here knows what a job does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, Final, TypeVar

from meshmint_server.errors import MeshmintError, Overloaded
from meshmint_server.keys.key import KeyFault

__all__ = ["Signer", "SignerHealth", "run_for_callers"]

T = TypeVar("T")
_log = logging.getLogger(__name__)

# Results are handed back when the queue runs dry, or this often while it does not:
# waking a loop costs about as much as a fast signature, a held-back result costs latency.
_FLUSH_SECONDS: Final = 0.002
_FLUSH_RESULTS: Final = 64


@dataclass(frozen=True, slots=True)
class SignerHealth:
    """A reading of the queue.

    Attributes:
        waiting: Jobs that no thread has taken yet.
        busy_seconds: How long the oldest job under way has been running; 0 if none is.
        is_stuck: Whether that is longer than it can reasonably take.
    """

    waiting: int
    busy_seconds: float
    is_stuck: bool


class _Job:
    """A call, and the loop where somebody waits for its result."""

    __slots__ = ("call", "deadline", "future", "loop", "timeout")

    def __init__(
        self,
        call: Callable[[], Any],
        future: asyncio.Future[Any],
        loop: asyncio.AbstractEventLoop,
        timeout: float,
    ) -> None:
        self.call = call
        self.future = future
        self.loop = loop
        self.timeout = timeout
        self.deadline = monotonic() + timeout


class _Posted:
    """A call whose result nobody waits for here."""

    __slots__ = ("call", "timeout")

    def __init__(self, call: Callable[[], None], timeout: float) -> None:
        self.call = call
        self.timeout = timeout


class _Worker:
    """What one thread is doing, readable by the others."""

    __slots__ = ("busy_since", "gate", "thread", "timeout")

    def __init__(self) -> None:
        self.busy_since: float | None = None
        self.timeout = 0.0
        self.gate = threading.Lock()
        self.thread: threading.Thread | None = None


class Signer:
    """Threads with a bounded queue in front, for use from any event loop.

    Attributes:
        threads: How many.
    """

    def __init__(self, name: str, *, threads: int = 1, queue_size: int = 1024) -> None:
        """Start the threads.

        Args:
            name: For the threads' names and messages.
            threads: How many jobs may run at the same time.
            queue_size: How many jobs may wait before more are refused.
        """
        self._name = name
        self.threads = threads
        self._queue: SimpleQueue[_Job | _Posted | None] = SimpleQueue()
        self._queue_size = queue_size
        self._lock = threading.Lock()
        self._alone = threading.Lock()
        self._waiting = 0
        self._is_closed = False
        self._finally: Callable[[], None] | None = None
        self._running = threads
        self._process = os.getpid()
        self._workers = tuple(_Worker() for _ in range(threads))
        for number, worker in enumerate(self._workers):
            # Daemons: a thread that hangs in a module must not keep the process from ending.
            worker.thread = threading.Thread(
                target=self._work, args=(worker,), name=f"{name}-{number}", daemon=True
            )
            worker.thread.start()

    async def run(self, call: Callable[[], T], *, timeout: float) -> T:  # noqa: ASYNC109
        """Run a blocking call on one of the threads and wait for its result.

        Args:
            call: What to run; it may raise a MeshmintError.
            timeout: Seconds to wait, queueing included. The call itself goes on if
                it was already taken.

        Raises:
            Overloaded: The queue is full.
            KeyFault: No result within the timeout, or the signer is stuck or closed.
        """
        if os.getpid() != self._process:
            raise KeyFault(
                "A key was used in another process than the one that opened it; "
                "PKCS#11 does not survive a fork. Start processes with 'spawn'."
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        job = _Job(call, future, loop, timeout)
        with self._lock:
            if self._is_closed:
                raise KeyFault("The signing threads have been stopped.")
            if self.is_stuck():
                raise KeyFault("The signing thread hangs inside a call to the key.")
            if self._waiting >= self._queue_size:
                raise Overloaded("Too many signatures are waiting. Retry later.")
            self._waiting += 1
            # Inside the lock, so that no job can get in behind close()'s end markers.
            self._queue.put(job)
        timer = loop.call_later(timeout, _expire, future, timeout)
        try:
            return await future
        finally:
            timer.cancel()

    def post(self, call: Callable[[], None], *, timeout: float) -> None:
        """Have one of the threads make a call that sees to its results itself.

        Args:
            call: Must raise nothing, and call `touch` before each step that may hang.
            timeout: Seconds that one of its steps may take before the thread is stuck.
        """
        with self._lock:
            if not self._is_closed:
                self._waiting += 1
                self._queue.put(_Posted(call, timeout))

    def touch(self) -> None:
        """From inside a posted call: the next step begins."""
        me = threading.current_thread()
        for worker in self._workers:
            if worker.thread is me:
                worker.busy_since = monotonic()

    def is_stuck(self, limit: float = 10.0) -> bool:
        """Whether a call has been running for longer than ``limit`` seconds.

        A call that was given more time than that (such as generating an RSA key)
        is measured against what it was given.
        """
        now = monotonic()
        for worker in self._workers:
            since = worker.busy_since
            if since is not None and now - since > max(limit, worker.timeout):
                return True
        return False

    def health(self, limit: float = 10.0) -> SignerHealth:
        """How the queue and the threads are doing."""
        now = monotonic()
        busy = [now - since for worker in self._workers if (since := worker.busy_since)]
        return SignerHealth(self._waiting, max(busy, default=0.0), self.is_stuck(limit))

    def run_alone(self, call: Callable[[], T], *, patience: float) -> T | None:
        """From inside a job: run a call while no other thread runs a job.

        Returns:
            The call's result; None if another job did not end within ``patience``
            seconds, or another thread wants the same, and the call was not made.
        """
        me = threading.current_thread()
        others = [worker.gate for worker in self._workers if worker.thread is not me]
        held: list[threading.Lock] = []
        # Two that wait for each other's gate would both wait in vain.
        if not self._alone.acquire(blocking=False):
            return None
        try:
            for gate in others:
                if not gate.acquire(timeout=patience):
                    return None
                held.append(gate)
            return call()
        finally:
            for gate in held:
                gate.release()
            self._alone.release()

    def close(self, patience: float = 5.0, finally_run: Callable[[], None] | None = None) -> bool:
        """Work off what waits, then stop the threads. Blocks.

        Args:
            patience: Seconds to wait for the threads.
            finally_run: What the last thread does before it ends.

        Returns:
            Whether all threads ended within ``patience`` seconds.
        """
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                self._finally = finally_run
                for _ in self._workers:
                    self._queue.put(None)
        until = monotonic() + patience
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join(max(0.0, until - monotonic()))
        return not any(worker.thread and worker.thread.is_alive() for worker in self._workers)

    def _work(self, worker: _Worker) -> None:
        done: list[tuple[_Job, Any, BaseException | None]] = []
        flushed = 0.0
        while True:
            try:
                job = self._queue.get_nowait()
            except Empty:
                _hand_back(done)
                done = []
                job = self._queue.get()
                flushed = monotonic()
            if job is None:
                _hand_back(done)
                with self._lock:
                    self._running -= 1
                    is_last = self._running == 0
                if is_last and self._finally is not None:
                    self._finally()
                return
            with self._lock:
                self._waiting -= 1
            now = monotonic()
            if isinstance(job, _Posted):
                # It may be long, and it may be followed by more of the kind.
                _hand_back(done)
                done = []
                with worker.gate:
                    worker.timeout = job.timeout
                    worker.busy_since = now
                    _outcome(job.call)
                    worker.busy_since = None
                continue
            if job.future.done() or now >= job.deadline:
                continue
            with worker.gate:
                worker.timeout = job.timeout
                worker.busy_since = now
                done.append((job, *_outcome(job.call)))
                worker.busy_since = None
            del job
            if len(done) >= _FLUSH_RESULTS or monotonic() - flushed >= _FLUSH_SECONDS:
                _hand_back(done)
                done = []
                flushed = monotonic()


async def run_for_callers(signer: Signer, call: Callable[[], T], timeout: float) -> T:  # noqa: ASYNC109
    """Run a call, and tell its faults as callers may see them; see `Signer.run`.

    Raises:
        Overloaded: The queue is full.
        KeyFault: The call failed, or gave no result in time.
    """
    try:
        return await signer.run(call, timeout=timeout)
    except KeyFault as fault:
        told = fault.for_callers()
    raise told


def _outcome(call: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return call(), None
    except MeshmintError as error:
        # Frames of this thread hold session objects that must be freed on this thread,
        # so no traceback and no chain crosses over.
        error.__traceback__ = error.__context__ = error.__cause__ = None
        return None, error
    except Exception as error:  # noqa: BLE001  the thread's outermost edge: a bug, and it goes on
        _log.error("a signing job failed unexpectedly: %s", type(error).__name__, exc_info=error)
        return None, RuntimeError(f"a signing job failed: {type(error).__name__}")


def _hand_back(done: list[tuple[_Job, Any, BaseException | None]]) -> None:
    """Post results with one wake-up per loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Job, Any, BaseException | None]]] = {}
    for item in done:
        by_loop.setdefault(item[0].loop, []).append(item)
    for loop, items in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, items)
        except RuntimeError:
            # The loop has been closed: nobody waits there any more.
            _log.debug("results for a closed event loop were dropped")


def _deliver(items: list[tuple[_Job, Any, BaseException | None]]) -> None:
    for job, value, error in items:
        if job.future.done():
            continue
        if error is None:
            job.future.set_result(value)
        else:
            job.future.set_exception(error)


def _expire(future: asyncio.Future[Any], timeout: float) -> None:
    if not future.done():
        future.set_exception(KeyFault(f"The key did not answer within {timeout:g} seconds."))
