"""Many certificates over one stream from a real service, whose workers go while it lasts."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from meshmint import (
    AsyncClient,
    Client,
    Outcome,
    RetryPolicy,
    SvidRequest,
    generate_key,
    make_csr,
)
from support.mesh import wait_until
from support.service import Service, ServiceFactory

GUIDE = (Path(__file__).parents[2] / "docs/guide/client.md").read_text(encoding="utf-8")
SECTION = GUIDE.partition("\n## Many at once\n")[2].partition("\n## ")[0]
WAITING, AWAITING = re.findall(r"^```python\n(.*?)^```", SECTION, re.M | re.S)


def settings(service: Service) -> dict[str, Any]:
    return {
        "token": service.token,
        "root_certificates": service.ca_file,
        "timeout": 60,
        # A worker that was killed is not there for seconds.
        "retry": RetryPolicy(max_attempts=100, max_delay=0.5),
    }


class Asking:
    """Requests without an end until a test says so, and what became of them."""

    def __init__(self, service: Service, role: str) -> None:
        self._service = service
        self._role = role
        self._is_enough = threading.Event()
        self._asking: Future[None] = Future()
        self.asked = 0
        self.outcomes: list[Outcome[Any, Any]] = []

    def requests(self) -> Iterator[SvidRequest]:
        while not self._is_enough.is_set():
            self.asked += 1
            yield SvidRequest(self._role)

    def waiting(self) -> None:
        with Client(self._service.address, **settings(self._service)) as client:
            for outcome in client.request_svids(self.requests()):
                self.outcomes.append(outcome)

    def awaiting(self) -> None:
        async def ask() -> None:
            async with AsyncClient(self._service.address, **settings(self._service)) as client:
                async for outcome in client.request_svids(self.requests()):
                    self.outcomes.append(outcome)

        asyncio.run(ask())

    def more(self) -> None:
        """Waits until so many more outcomes came, or asking failed."""
        wanted = len(self.outcomes) + 300
        wait_until(lambda: len(self.outcomes) >= wanted or self._asking.done(), "300 more outcomes")

    @contextlib.contextmanager
    def until_enough(self, ask: Callable[[], None]) -> Iterator[None]:
        """Asks for as long as the block lasts."""
        with ThreadPoolExecutor(1) as pool:
            self._asking = pool.submit(ask)
            try:
                self.more()
                yield
            finally:
                self._is_enough.set()
            self._asking.result()


@pytest.mark.parametrize("kind", ["waiting", "awaiting"])
def test_many_outlive_the_workers_that_serve_them_and_nothing_is_minted_twice(
    service_factory: ServiceFactory, kind: str
) -> None:
    with service_factory.start() as service:
        role = service.put_role({"spiffe": "own", "key_type": "any"})
        service.wait_until_everywhere(role)
        others = {record.serial_number for record in service.all_records(role=role)}
        asking = Asking(service, role)
        with asking.until_enough(getattr(asking, kind)):
            for end_workers in (
                lambda: service.process.send_signal(signal.SIGHUP),
                service.restart_workers,
            ):
                before = service.worker_pids()
                end_workers()
                service.wait_until_ready(without=before)
                wait_until(lambda: not service.worker_pids() & before, "the old worker is gone")  # noqa: B023
                asking.more()
        assert [outcome.error for outcome in asking.outcomes if outcome.error] == []
        serials = [outcome.result().serial_number for outcome in asking.outcomes]
        assert len(set(serials)) == len(serials) == asking.asked
        recorded = {record.serial_number for record in service.all_records(role=role)}
        assert recorded - others == set(serials)


@pytest.fixture
def web_role(service: Service) -> str:
    name = service.put_role(
        {"allowed_domains": ["shop.example.org"], "allow_subdomains": True, "require_cn": False}
        | {"key_type": "any"}
    )
    service.wait_until_everywhere(name)
    return name


def test_the_example_of_the_guide_works_as_it_stands(
    service: Service, web_role: str, tmp_path: Path
) -> None:
    example = WAITING.replace("/run/tls", str(tmp_path)).replace('"web"', repr(web_role))
    assert str(tmp_path) in example
    assert web_role in example
    with Client(service.address, **settings(service)) as client:
        exec(compile(example, "client.md", "exec"), {"client": client})  # noqa: S102
    for host in ("cart.shop.example.org", "stock.shop.example.org"):
        certificate = x509.load_pem_x509_certificate((tmp_path / host / "cert.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert names.value.get_values_for_type(x509.DNSName) == [host]


async def test_the_asynchronous_example_of_the_guide_works_as_it_stands(
    service: Service, web_role: str
) -> None:
    class Enough(Exception):
        pass

    hosts = {f"{name}.shop.example.org" for name in ("cart", "stock", "web")}
    csrs: asyncio.Queue[x509.CertificateSigningRequest] = asyncio.Queue()
    for host in hosts:
        csrs.put_nowait(make_csr(generate_key(), dns_names=[host]))
    answered: set[str] = set()

    async def answer(outcome: Outcome[Any, Any]) -> None:
        names = outcome.result().certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        answered.update(names.value.get_values_for_type(x509.DNSName))
        if answered == hosts:
            raise Enough

    example = compile(
        AWAITING.replace('"web"', repr(web_role)),
        "client.md",
        "exec",
        ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )
    async with AsyncClient(service.address, **settings(service)) as client:
        with pytest.raises(Enough):
            await eval(example, {"client": client, "csrs": csrs, "answer": answer})  # noqa: S307
