"""What a soak breaks: each fault is made, undone where nobody else would, and named."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from support.postgres import PostgresServer

from soak.replicas import Replica

__all__ = ["Faults"]


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of a run.

    Args:
        replicas: The first stays up as a whole; the last is the one that is killed.
        postgres: Their store.
        draw: Where the choices come from.
    """

    replicas: list[Replica]
    postgres: PostgresServer
    draw: random.Random

    @property
    def kinds(self) -> dict[str, Callable[[], None]]:
        """What makes each, by name."""
        return {
            "worker killed": self._kill_worker,
            "signing process killed": self._kill_signing_process,
            "signing process stopped": self._stop_signing_process,
            "configuration reloaded": self._reload,
            "PostgreSQL restarted": self._restart_postgres,
            "token away": self._hide_token,
            "replica killed": self._kill_replica,
        }

    def _anyone(self) -> Replica:
        return self.draw.choice(self.replicas)

    def _pause(self) -> None:
        time.sleep(self.draw.uniform(0.5, 3))

    def _kill_worker(self) -> None:
        os.kill(self.draw.choice(self._anyone().workers()), signal.SIGKILL)

    def _kill_signing_process(self) -> None:
        os.kill(self.draw.choice(self._anyone().signing_processes()), signal.SIGKILL)

    def _stop_signing_process(self) -> None:
        # Its worker gives it up and starts another: it is never told to go on.
        replica = self._anyone()
        stopped = self.draw.choice(replica.signing_processes())
        os.kill(stopped, signal.SIGSTOP)
        ends = time.monotonic() + 60
        while stopped in replica.signing_processes():
            if time.monotonic() > ends:
                raise TimeoutError("a signing process that hangs is not replaced")
            time.sleep(0.1)

    def _reload(self) -> None:
        replica = self._anyone()
        before = set(replica.workers())
        replica.service.process.send_signal(signal.SIGHUP)
        ends = time.monotonic() + 120
        while before & set(replica.workers()):
            if time.monotonic() > ends:
                raise TimeoutError("the workers are not replaced after SIGHUP")
            time.sleep(0.1)

    def _restart_postgres(self) -> None:
        # "Immediate": every session ends at once, and it recovers from its log.
        self.postgres.stop(signal.SIGQUIT)
        self._pause()
        self.postgres.start()

    def _hide_token(self) -> None:
        # The replicas share the token: what starts meanwhile finds none.
        service = self.replicas[0].service
        service.hide_token()
        try:
            self.draw.choice([self._kill_worker, self._kill_signing_process])()
            self._pause()
        finally:
            service.show_token()

    def _kill_replica(self) -> None:
        replica = self.replicas[-1]
        replica.kill()
        self._pause()
        replica.start()
