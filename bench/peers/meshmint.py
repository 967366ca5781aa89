"""Meshmint as a `Server`: the real `meshmintd serve`, its key in SoftHSM, TLS, full sync."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
from meshmint.v1 import certificate_service_pb2 as pb
from support.postgres import PostgresServer
from support.service import Service

from peers.load import Call, frame, grpc_call
from peers.workload import CSR, ROLE, SPIFFE_ID, Work, check_certificate

__all__ = ["Meshmint", "Shape"]

_TOKEN_SECONDS = 4 * 3600
_METHODS = {"issue": "Issue", "sign": "Sign"}
_COUNTED = re.compile(r"^meshmint_rpc_seconds_count\{(.*)\} (\S+)$", re.MULTILINE)
# Streams that h2load cut off at the end of a run were cancelled.
_NOT_REFUSED = ("OK", "CANCELLED")
_COUNT = "SELECT count(*) FROM records"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one stream asks for.

    Attributes:
        messages: How many it sends.
        items: How many are in each.
        roles: Whose turn it is from item to item; empty: the role that unary requests have.
    """

    messages: int = 2
    items: int = 32
    roles: tuple[str, ...] = ()

    @property
    def certificates(self) -> int:
        """How many it asks for."""
        return self.messages * self.items


_SHAPE: Final = Shape()


class Meshmint:
    """A running service with a worker for each core.

    Attributes:
        name: ``meshmint-sqlite`` or ``meshmint-postgresql``.
        count_records: How many rows its table of records has.
        version: Of the distribution.
    """

    version = version("meshmint-server")

    def __init__(
        self,
        name: str,
        service: Service,
        count_records: Callable[[], int],
        store_pids: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.count_records = count_records
        self._service = service
        self._store_pids = store_pids
        self._token = service.token(ttl=_TOKEN_SECONDS)
        self._roles = {
            is_recorded: service.put_role(ROLE | {"spiffe": "own", "no_store": not is_recorded})
            for is_recorded in (True, False)
        }
        for role in self._roles.values():
            service.wait_until_everywhere(role)

    @classmethod
    @contextmanager
    def with_sqlite(cls, directory: Path) -> Iterator[Meshmint]:
        """With its store in one file."""
        with cls._serving(directory) as service:
            yield cls.on_sqlite("meshmint-sqlite", service)

    @classmethod
    def on_sqlite(cls, name: str, service: Service) -> Meshmint:
        """A service that is running, with its store in one file."""
        return cls(name, service, partial(_count_rows, service.directory / "meshmint.db"))

    @classmethod
    @contextmanager
    def with_postgresql(cls, directory: Path) -> Iterator[Meshmint]:
        """With a PostgreSQL of its own, as it comes out of the package: every commit is synced."""
        server = PostgresServer(())
        try:
            main_pid = int((server.directory / "data/postmaster.pid").read_text().split()[0])
            url = server.url("postgres")
            with cls._serving(directory, store=url) as service:
                yield cls(
                    "meshmint-postgresql",
                    service,
                    lambda: asyncio.run(_fetch_count(url)),
                    [main_pid],
                )
        finally:
            server.remove()

    @staticmethod
    @contextmanager
    def _serving(directory: Path, **options: object) -> Iterator[Service]:
        service = Service(directory, workers=os.cpu_count() or 1, **options)
        service.start()
        try:
            yield service
        finally:
            service.stop()

    @property
    def pids(self) -> list[int]:
        """The supervisor, and the database's main process if it has one."""
        return [self._service.process.pid, *self._store_pids]

    def call(self, work: Work) -> Call:
        """The gRPC request, as it is on the wire."""
        return self._call(_METHODS[work.operation], frame(self._request(work).SerializeToString()))

    def stream_call(self, work: Work, shape: Shape = _SHAPE) -> Call:
        """A whole stream as one request: its messages, and no more of them."""
        messages = (message.SerializeToString() for message in self._messages(work, shape))
        body = b"".join(map(frame, messages))
        return self._call(_METHODS[work.operation] + "Stream", body, shape.certificates)

    def _call(self, method: str, body: bytes, items: int = 1) -> Call:
        method = f"meshmint.v1.CertificateService/{method}"
        return grpc_call(self._service.address, method, self._token, body, items)

    def probe(self, work: Work) -> int:
        """Calls with the generated stub."""
        request = self._request(work)
        if isinstance(request, pb.IssueRequest):
            answer = self._service.issue(request, token=self._token)
        else:
            answer = self._service.sign(request, token=self._token)
        assert not answer.warnings, answer.warnings
        check_certificate(answer.certificate, answer.chain[0])
        return len(frame(answer.SerializeToString()))

    def count_refused_items(self) -> int:
        """How many items of streams were answered with an error, ever, as the service tells."""
        text = httpx.get(self._service.http_url + "/metrics", trust_env=False, timeout=30).text
        counts = [found for found in _COUNTED.findall(text) if "Stream" in found[0]]
        assert counts, text[:200]
        return sum(
            round(float(count))
            for labels, count in counts
            if not any(f'code="{code}"' in labels for code in _NOT_REFUSED)
        )

    def probe_stream(self, work: Work, shape: Shape = _SHAPE) -> int:
        """Calls with the generated stub, and checks every certificate of the stream.

        Returns:
            The size of all answers in bytes, framed. The server may put them into fewer
            messages, or more, the next time: a matter of a few bytes for each.
        """
        method = getattr(self._service.stub, _METHODS[work.operation] + "Stream")
        metadata = self._service.metadata(self._token)
        size, ids = 0, set()
        for answer in method(iter(self._messages(work, shape)), timeout=60, metadata=metadata):
            size += len(frame(answer.SerializeToString()))
            for item in answer.items:
                assert item.WhichOneof("outcome") == "response", item.error
                assert not item.response.warnings, item.response.warnings
                check_certificate(item.response.certificate, item.response.chain[0])
                ids.add(item.id)
        assert len(ids) == shape.certificates, ids
        return size

    def _messages(
        self, work: Work, shape: Shape
    ) -> list[pb.IssueStreamRequest | pb.SignStreamRequest]:
        kind: Any = pb.SignStreamRequest if work.operation == "sign" else pb.IssueStreamRequest
        roles = shape.roles or (self._roles[work.is_recorded],)
        requests = [self._request(work, role) for role in roles]
        return [
            kind(
                items=[
                    kind.Item(id=str(number), request=requests[number % len(requests)])
                    for number in range(first, first + shape.items)
                ]
            )
            for first in range(0, shape.certificates, shape.items)
        ]

    def _request(self, work: Work, role: str = "") -> pb.IssueRequest | pb.SignRequest:
        role = role or self._roles[work.is_recorded]
        if work.operation == "sign":
            return pb.SignRequest(role=role, csr_pem=CSR)
        return pb.IssueRequest(role=role, names=pb.CertificateNames(uris=[SPIFFE_ID]))


def _count_rows(file: Path) -> int:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return int(connection.execute(_COUNT).fetchone()[0])


async def _fetch_count(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval(_COUNT))
    finally:
        await connection.close()
