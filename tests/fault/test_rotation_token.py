"""The token of issuers goes away and comes back: they stay published, and none takes over."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1 import certificate_service_pb2 as pb
from support.service import Service, ServiceFactory, make_root, sign_intermediate


@pytest.fixture
def running(service_factory: ServiceFactory) -> Iterator[Service]:
    # With certificates from files it listens even while nothing can be signed.
    with service_factory.start_with_tls_files() as started:
        yield started


def pem(*certificates: x509.Certificate) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def until(holds: Callable[[], bool]) -> None:
    """Waits, generously: how long it takes is not what this is about."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)


def test_issuers_whose_token_is_away_are_published_and_none_takes_over_until_it_is_back(
    running: Service,
) -> None:
    role = running.put_role({"spiffe": "own", "key_type": "ec"})
    metadata = running.admin_metadata
    prepared = running.admin.PrepareIssuer(
        admin_pb.PrepareIssuerRequest(name="mesh-2"), timeout=10, metadata=metadata
    )
    key, root = make_root()
    csr = x509.load_pem_x509_csr(prepared.csr.encode())
    certificates = pem(sign_intermediate(csr, key, root, timedelta(days=500)), root)
    running.admin.ImportIssuer(
        admin_pb.ImportIssuerRequest(certificates=certificates), timeout=10, metadata=metadata
    )
    roots = {pem(running.root), pem(root)}

    def issue() -> pb.IssueResponse:
        return running.issue(pb.IssueRequest(role=role))

    def activate() -> object:
        return running.admin.ActivateIssuer(
            admin_pb.ActivateIssuerRequest(name="mesh-2", at_once=True),
            timeout=10,
            metadata=metadata,
        )

    def published() -> set[str]:
        return set(running.stub.GetChain(pb.GetChainRequest(), timeout=10).trust_bundle)

    until(lambda: published() == roots)
    before = running.worker_pids()
    running.hide_token()
    running.restart_workers()
    until(lambda: not running.worker_pids() & before)
    until(lambda: code_of(published) is grpc.StatusCode.OK)
    assert published() == roots
    assert code_of(issue) is grpc.StatusCode.UNAVAILABLE
    assert code_of(activate) is grpc.StatusCode.UNAVAILABLE
    found = running.admin.GetIssuer(
        admin_pb.GetIssuerRequest(name="mesh-2"), timeout=10, metadata=metadata
    )
    assert found.state == admin_pb.ISSUER_STATE_NEXT

    running.show_token()
    until(lambda: code_of(issue) is grpc.StatusCode.OK)
    assert issue().chain[0] not in certificates
    until(lambda: code_of(activate) is grpc.StatusCode.OK)
    until(lambda: issue().chain[0] in certificates)
