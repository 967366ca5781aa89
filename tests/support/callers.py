"""Callers that go on asking for certificates while things break, and hold what they got.

Each request asks for a DNS name of its own, so that afterwards the records tell whether
one request was minted for twice.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.serialization import Encoding
from meshmint import Client, MeshmintError, RetryPolicy
from support.service import Service

__all__ = ["TEMPORARY", "Callers", "Held", "put_callers_role"]

# What a caller may be told while something is away: each says that trying again makes sense.
TEMPORARY = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})

_DOMAIN = "callers.example"
_NEVER_AGAIN = RetryPolicy(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Held:
    """A certificate that a caller got: its serial number and DER."""

    serial_number: str
    certificate: bytes


def put_callers_role(service: Service) -> str:
    """A role that gives callers the names that they ask for, known to every worker."""
    role = service.put_role(
        {
            "spiffe": "own", "allowed_domains": [_DOMAIN], "allow_subdomains": True,
            "require_cn": False, "key_type": "any", "ttl": "1h",
        }
    )  # fmt: skip
    service.wait_until_everywhere(role)
    return role


class Callers:
    """Threads with a client each, calling one after the other. Use it as a context manager.

    Args:
        services: Each thread calls one of them, in turn.
        role: Made by `put_callers_role`.
        threads: How many.
        pause: Seconds between two calls of a thread.
        timeout: Seconds for a call with all its retries.
        retry: None: an error of the service is the caller's at once.

    Attributes:
        held: What was got.
        errors: What was got instead.
        faults: Whatever else broke a thread: a bug.
    """

    def __init__(
        self,
        services: Sequence[Service],
        role: str,
        *,
        threads: int = 4,
        pause: float = 0.02,
        timeout: float = 10.0,
        retry: RetryPolicy | None = None,
    ) -> None:
        self.held: list[Held] = []
        self.errors: list[MeshmintError] = []
        self.faults: list[BaseException] = []
        self._role = role
        self._pause = pause
        self._over = threading.Event()
        token = services[0].token(ttl=86_400)
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(_client(services[number % len(services)], token, timeout, retry), number),
                name=f"caller-{number}",
                daemon=True,
            )
            for number in range(threads)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def codes(self) -> set[str]:
        """The gRPC status codes of the errors so far."""
        return {error.code for error in self.errors}

    def wait_for_more(self, count: int) -> None:
        """Waits until so many more certificates were got, generously."""
        wanted, ends = len(self.held) + count, time.monotonic() + 60
        while len(self.held) < wanted:
            assert not self.faults, self.faults
            assert time.monotonic() < ends, f"no certificates any more; {self.errors[-3:]}"
            time.sleep(0.02)

    def _run(self, client: Client, number: int) -> None:
        try:
            with client:
                while not self._over.wait(self._pause):
                    self._call(client, number)
        except BaseException as fault:  # noqa: BLE001 - for whoever reads `faults`
            self.faults.append(fault)

    def _call(self, client: Client, number: int) -> None:
        # Half of them have the server make the key.
        ask = client.issue if number % 2 else client.request_svid
        name = f"{uuid.uuid4().hex}.{_DOMAIN}"
        try:
            got = ask(self._role, key_algorithm="ec-p256", dns_names=[name])
        except MeshmintError as error:
            self.errors.append(error)
        else:
            self.held.append(Held(got.serial_number, got.certificate.public_bytes(Encoding.DER)))


def _client(service: Service, token: str, timeout: float, retry: RetryPolicy | None) -> Client:
    return Client(
        service.address,
        token=token,
        root_certificates=Path(service.ca_file),
        timeout=timeout,
        retry=retry or _NEVER_AGAIN,
    )
