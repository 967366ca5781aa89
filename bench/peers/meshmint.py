"""Meshmint as a `Server`: the real `meshmintd serve`, its key in SoftHSM, TLS, full sync."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import asyncpg
from meshmint.v1 import certificate_service_pb2 as pb
from support.postgres import PostgresServer
from support.service import Service

from peers.load import Call, frame
from peers.workload import CSR, ROLE, SPIFFE_ID, Work, check_certificate

__all__ = ["Meshmint"]

_TOKEN_SECONDS = 4 * 3600
_METHODS = {"issue": "Issue", "sign": "Sign"}
_COUNT = "SELECT count(*) FROM records"


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
            yield cls("meshmint-sqlite", service, partial(_count_rows, directory / "meshmint.db"))

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
        return Call(
            url=f"https://{self._service.address}/meshmint.v1.CertificateService/"
            + _METHODS[work.operation],
            headers=(
                ("content-type", "application/grpc"),
                ("te", "trailers"),
                ("authorization", f"Bearer {self._token}"),
            ),
            body=frame(self._request(work).SerializeToString()),
        )

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

    def _request(self, work: Work) -> pb.IssueRequest | pb.SignRequest:
        role = self._roles[work.is_recorded]
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
