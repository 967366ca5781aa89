"""An intermediate and then a root are rotated under a mesh in full use, and no handshake fails.

The operator works over AdminService, and the workloads with the public client. The number of
handshakes in each phase is the proof.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message
from meshmint import Client, Unavailable
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1.admin_service_pb2_grpc import AdminServiceStub
from support.mesh import LIFETIME, Handshake, Mesh, wait_until
from support.service import Service, ServiceFactory, make_root, sign_intermediate, timedelta

HANDSHAKES = 40
SECONDS = f"{LIFETIME.total_seconds():.0f}s"
SETTINGS = {
    "workers": 2,
    "default_ttl": SECONDS,
    "max_ttl": SECONDS,
    "tls": {
        "mode": "own",
        "dns_names": ["localhost"],
        "ip_addresses": ["127.0.0.1"],
        "lifetime": SECONDS,
    },
    # Watchers hear of a new root within a second; those who poll are not in this test.
    "rotation": {"publish_for": "3s"},
}
ROLE = {"spiffe": "own", "ttl": SECONDS, "max_ttl": SECONDS, "key_type": "ec"}


class Operator:
    """Rotates issuers over AdminService, and holds the offline roots."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._roots = [(service.root_key, service.root)]

    def new_root(self) -> str:
        """Makes the root that signs from now on; returns its PEM."""
        self._roots.append(make_root())
        return pem(self._roots[-1][1])

    def publish_next(self) -> str:
        """Key and CSR, the root's signature, import; returns the issuer's name."""
        key, root = self._roots[-1]
        with self._admin() as admin:
            prepared = admin.PrepareIssuer(
                admin_pb.PrepareIssuerRequest(), metadata=self._service.admin_metadata
            )
            csr = x509.load_pem_x509_csr(prepared.csr.encode())
            certificate = sign_intermediate(csr, key, root, timedelta(days=500))
            imported = admin.ImportIssuer(
                admin_pb.ImportIssuerRequest(certificates=pem(certificate) + pem(root)),
                metadata=self._service.admin_metadata,
            )
        assert imported.state == admin_pb.ISSUER_STATE_NEXT
        return prepared.issuer.name

    def activate(self, *, at_once: bool = False) -> None:
        """Asks until it is allowed: not before the root has been published long enough."""
        self._until_allowed("ActivateIssuer", admin_pb.ActivateIssuerRequest(at_once=at_once))

    def remove(self, name: str, *, at_once: bool = False) -> None:
        """Asks until it is allowed: not while certificates live that chain to it."""
        request = admin_pb.RemoveIssuerRequest(name=name, at_once=at_once)
        self._until_allowed("RemoveIssuer", request)

    def _until_allowed(self, rpc: str, request: Message) -> None:
        def is_done() -> bool:
            try:
                getattr(admin, rpc)(request, metadata=self._service.admin_metadata)
            except grpc.RpcError as error:
                # Not yet; or the service itself changed the issuers in this moment.
                if error.code() not in (
                    grpc.StatusCode.FAILED_PRECONDITION,
                    grpc.StatusCode.UNAVAILABLE,
                ):
                    raise
                return False
            return True

        with self._admin() as admin:
            wait_until(is_done, f"{rpc} is allowed", pause=0.2)

    @contextlib.contextmanager
    def _admin(self) -> Iterator[AdminServiceStub]:
        """A connection of its own: the service's certificate is of the old root, or the new one."""
        roots = "".join(pem(root) for _, root in self._roots).encode()
        credentials = grpc.ssl_channel_credentials(roots)
        with grpc.secure_channel(self._service.address, credentials) as channel:
            yield AdminServiceStub(channel)


def pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


@pytest.fixture(params=["sqlite", "postgresql with two replicas"])
def services(
    request: pytest.FixtureRequest, service_factory: ServiceFactory
) -> Iterator[list[Service]]:
    """A service of two workers, and in the second case a replica of it."""
    if request.param == "sqlite":
        with service_factory.start(**SETTINGS) as service:
            yield [service]
        return
    url = request.getfixturevalue("postgres_url")
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(service_factory.start(**SETTINGS, store=url))
        yield [service, stack.enter_context(service.replica())]


def put_role(services: list[Service]) -> str:
    role = services[0].put_role(ROLE)
    for service in services:
        service.wait_until_everywhere(role)
    return role


def issuers_seen(handshakes: Iterable[Handshake]) -> set[str]:
    """Names of the issuers on either side."""
    names = [name for one in handshakes for name in (one.server, one.client)]
    return {name.removeprefix("Meshmint ") for name in names}


def rotate(mesh: Mesh, operator: Operator, old: str, what: str) -> str:
    """From one issuer to the next, from end to end, with handshakes in every phase of it."""
    mesh.pass_through(f"{what}: before", HANDSHAKES)
    new = operator.publish_next()
    seen = mesh.pass_through(f"{what}: next published", HANDSHAKES)
    assert issuers_seen(seen) == {old}
    operator.activate()
    phase = f"{what}: activated"
    mesh.pass_through(phase, HANDSHAKES)
    renewed = Handshake(phase, f"Meshmint {new}", f"Meshmint {new}")
    wait_until(lambda: mesh.in_phase(phase)[renewed] >= HANDSHAKES, f"all have one of {new}")
    assert issuers_seen(mesh.in_phase(phase)) == {old, new}
    operator.remove(old)
    seen = mesh.pass_through(f"{what}: old one gone", HANDSHAKES)
    assert issuers_seen(seen) == {new}
    return new


def test_no_handshake_fails_while_intermediate_and_root_are_rotated(
    services: list[Service], tmp_path: Path
) -> None:
    operator = Operator(services[0])
    old_root = pem(services[0].root)
    with Mesh(services, put_role(services), tmp_path) as mesh:
        second = rotate(mesh, operator, "issuer-1", "intermediate")
        assert all(workload.knows(old_root) for workload in mesh.workloads)
        new_root = operator.new_root()
        rotate(mesh, operator, second, "root")
        wait_until(
            lambda: not any(workload.knows(old_root) for workload in mesh.workloads),
            "the old root has left every bundle",
        )
        mesh.pass_through("old root gone", HANDSHAKES)
        assert all(workload.knows(new_root) for workload in mesh.workloads)

    assert mesh.failures == []
    assert mesh.faults == []


def test_handshakes_fail_where_a_root_signs_that_a_workload_does_not_know(
    service_factory: ServiceFactory, tmp_path: Path
) -> None:
    with service_factory.start(**SETTINGS) as service:
        operator = Operator(service)
        with Mesh([service], put_role([service]), tmp_path, server_watches=False) as mesh:
            mesh.pass_through("before", HANDSHAKES)
            operator.new_root()
            operator.publish_next()
            operator.activate(at_once=True)
            wait_until(lambda: len(mesh.failures) > 0, "a handshake fails")

    assert "unable to get local issuer certificate" in "".join(mesh.failures)


def test_the_service_drops_its_own_certificate_with_the_issuer_of_it(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start(rotation=SETTINGS["rotation"]) as service:
        operator = Operator(service)
        root = operator.new_root()
        operator.publish_next()
        operator.activate(at_once=True)
        operator.remove("issuer-1", at_once=True)

        def is_reached() -> bool:
            with (
                contextlib.suppress(Unavailable),
                Client(service.address, root_certificates=root) as client,
            ):
                return client.get_chain().trust_bundle_pem == (root,)
            return False

        # It would have been good for hours, and nobody who has the new bundle would take it.
        wait_until(is_reached, "who trusts the new root alone reaches the service")
