"""Load of workloads that use the public client as they should, and what became of it.

Each thread has a client of its own and asks for certificates one after the other. At the
end what they hold is compared with what is on record.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from meshmint import Client, MeshmintError, RetryPolicy
from support.mesh import wait_until
from support.service import Service

__all__ = ["Load", "Reconciled", "load", "target_of"]

# Not what is tested, and machines are slow.
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Reconciled:
    """The certificates of a role: what clients hold beside what is on record.

    Attributes:
        held: Serial numbers of certificates that clients got.
        unrecorded: Those of them that are not on record. Never any.
        unheard: Those on record that no client got, as when a retry mints another one.
    """

    held: frozenset[str]
    unrecorded: frozenset[str]
    unheard: frozenset[str]


class Load:
    """Clients that ask without end, until the block is over.

    Attributes:
        failures: What a client was told after all its retries.
    """

    def __init__(self, role: str, before: frozenset[str]) -> None:
        self._role = role
        self._before = before
        self._changing = threading.Lock()
        self._serials: list[str] = []
        self._ended = threading.Event()
        self.failures: list[str] = []

    def more(self, certificates: int = 20) -> None:
        """Goes on until so many more certificates came, or clients failed."""
        wanted = len(self._serials) + certificates
        wait_until(
            lambda: len(self._serials) >= wanted or bool(self.failures),
            f"{certificates} more certificates",
        )

    def newest(self) -> str:
        """The serial number of the certificate that came last."""
        return self._serials[-1]

    def reconcile(self, service: Service) -> Reconciled:
        """Compares with the records, which one of the services tells."""
        held = frozenset(self._serials)
        assert len(held) == len(self._serials), "a serial number came twice"
        recorded = _recorded(service, self._role) - self._before
        return Reconciled(held, held - recorded, recorded - held)

    def _ask(self, client: Client) -> None:
        while not self._ended.is_set():
            try:
                serial = client.request_svid(self._role).serial_number
            except MeshmintError as error:
                with self._changing:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self._ended.wait(0.1)
            else:
                with self._changing:
                    self._serials.append(serial)


@contextlib.contextmanager
def load(
    services: Sequence[Service], role: str, *, clients: int = 6, retry: RetryPolicy | None = None
) -> Iterator[Load]:
    """Runs load on some services, replicas of each other, for as long as the block lasts.

    Args:
        services: Each client knows all of them, and begins with another one.
        role: The role to ask for.
        clients: How many ask at once.
        retry: When clients try again; None: as they do by themselves.
    """
    running = Load(role, _recorded(services[0], role))
    with contextlib.ExitStack() as stack:
        threads = []
        for number in range(clients):
            first = number % len(services)
            token = services[first].token(ttl=3600)
            client = Client(
                target_of([*services[first:], *services[:first]]),
                token=token,
                root_certificates=services[first].ca_file,
                server_name="localhost",
                timeout=_TIMEOUT_SECONDS,
                retry=retry,
                options=[("grpc.use_local_subchannel_pool", 1)],
            )
            stack.enter_context(client)
            threads.append(threading.Thread(target=running._ask, args=(client,)))
        try:
            for thread in threads:
                thread.start()
            running.more()
            yield running
        finally:
            running._ended.set()
            for thread in threads:
                thread.join()


def _recorded(service: Service, role: str) -> frozenset[str]:
    serials = [record.serial_number for record in service.all_records(role=role)]
    assert len(set(serials)) == len(serials), "a serial number is on record twice"
    return frozenset(serials)


def target_of(services: Sequence[Service]) -> str:
    """A gRPC target that has the addresses of all."""
    return "ipv4:" + ",".join(service.address for service in services)
