"""Callers that go on whatever happens, and what they were told.

A few threads ask for X509-SVIDs with the Python client, one after the other, and never
retry: so every answer of the service is seen as it is.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from meshmint import Client, MeshmintError, RetryPolicy, Svid
from meshmint.v1 import admin_service_pb2 as admin_pb
from support.service import Service

__all__ = ["MAY_BE_TOLD", "SteadyLoad"]

MAY_BE_TOLD = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
"""Codes that tell a caller to come again; nothing else is true of trouble with a token."""


@dataclass(frozen=True)
class Told:
    """One answer: a certificate, or an error's code and words."""

    svid: Svid | None
    error: MeshmintError | None


class SteadyLoad:
    """Asks while its block runs."""

    def __init__(self, service: Service, role: str, *, callers: int = 3, pause: float = 0.05):
        self._service = service
        self._role = role
        self._pause = pause
        self._ending = threading.Event()
        self._told: list[Told] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        self._bugs: list[BaseException] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        try:
            with Client(
                self._service.address,
                token=self._service.token(),
                root_certificates=self._service.ca_file,
                retry=RetryPolicy(max_attempts=1),
            ) as client:
                while not self._ending.wait(self._pause):
                    try:
                        self._told.append(Told(client.request_svid(self._role), None))
                    except MeshmintError as error:
                        self._told.append(Told(None, error))
        except BaseException as error:  # told in `verify`
            self._bugs.append(error)
            raise

    @property
    def answers(self) -> int:
        """How many there were so far."""
        return len(self._told)

    @property
    def svids(self) -> list[Svid]:
        """What was handed out so far."""
        return [told.svid for told in self._told if told.svid is not None]

    @property
    def refusals(self) -> Counter[str]:
        """How often each code was told."""
        return Counter(told.error.code for told in self._told if told.error is not None)

    def verify(self) -> None:
        """After the block: only what may be told was, and what was handed out is in order.

        Raises:
            AssertionError: With what is not.
        """
        assert not self._bugs, self._bugs
        wrong = [
            f"{told.error.code} {told.error}"
            for told in self._told
            if told.error is not None and told.error.code not in MAY_BE_TOLD
        ]
        assert not wrong, wrong
        for told in self._told:
            # Also that the connection was never lost: gRPC's own errors give no such time.
            assert told.error is None or told.error.retry_after is not None, told.error
        recorded = _serial_numbers(self._service, self._role)
        for svid in self.svids:
            (issuer, *_) = svid.chain
            svid.certificate.verify_directly_issued_by(issuer)
            assert svid.serial_number in recorded, svid.serial_number
        assert len({svid.serial_number for svid in self.svids}) == len(self.svids)


def _serial_numbers(service: Service, role: str) -> set[str]:
    """Of every record of a role."""
    found: set[str] = set()
    page_token = ""
    while True:
        page = service.admin.ListRecords(
            admin_pb.ListRecordsRequest(
                filter=admin_pb.RecordFilter(role=role), page_size=1000, page_token=page_token
            ),
            timeout=10,
            metadata=service.admin_metadata,
        )
        found |= {record.serial_number for record in page.records}
        page_token = page.next_page_token
        if not page_token:
            return found
