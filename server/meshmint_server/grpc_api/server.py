"""The gRPC listener: our services, health and reflection on one port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from meshmint.third_party.istio.ca_pb2_grpc import add_IstioCertificateServiceServicer_to_server
from meshmint.third_party.linkerd.identity_pb2_grpc import add_IdentityServicer_to_server
from meshmint.v1 import admin_service_pb2, certificate_service_pb2
from meshmint.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from meshmint.v1.certificate_service_pb2_grpc import add_CertificateServiceServicer_to_server

from meshmint_server.grpc_api.admin_service import AdminService
from meshmint_server.grpc_api.certificate_service import CertificateService
from meshmint_server.grpc_api.entrance import Entrance
from meshmint_server.grpc_api.istio_service import SERVICE as ISTIO_SERVICE
from meshmint_server.grpc_api.istio_service import IstioService
from meshmint_server.grpc_api.linkerd_service import SERVICE as LINKERD_SERVICE
from meshmint_server.grpc_api.linkerd_service import LinkerdService
from meshmint_server.issuance import Readiness

__all__ = ["GrpcListener"]

CERTIFICATE_SERVICE = certificate_service_pb2.DESCRIPTOR.services_by_name[
    "CertificateService"
].full_name
ADMIN_SERVICE = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name

# A CSR of RSA-8192 with a thousand names stays well below.
MAX_MESSAGE_BYTES = 1024 * 1024
# Four times the largest token, so that one somewhat too large gets as far as our code and is
# answered with what to do. Anybody may send metadata, and all of it is held until the call
# is answered: what is larger, gRPC itself refuses with RESOURCE_EXHAUSTED and does not keep.
MAX_METADATA_BYTES = 64 * 1024
MAX_STREAMS_PER_CONNECTION = 256


class GrpcListener:
    """One grpc.aio server.

    Args:
        certificate_service: Serves workloads.
        admin_service: Serves operators.
        entrance: Through which the RPCs of all come in.
        istio: Serves Istio's agents, if anybody does.
        linkerd: Serves Linkerd's proxies, if anybody does.
        most_pending: Requests that may wait before anybody has looked at them. Beyond that
            gRPC itself ends some, and beyond twice as many all, with CANCELLED: at a
            fraction of what a word of ours would cost.
    """

    def __init__(
        self,
        certificate_service: CertificateService,
        admin_service: AdminService,
        entrance: Entrance,
        *,
        istio: IstioService | None = None,
        linkerd: LinkerdService | None = None,
        most_pending: int = 2304,
    ) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.server.max_pending_requests", most_pending),
                ("grpc.server.max_pending_requests_hard_limit", 2 * most_pending),
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
                ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
                # Dead peers are noticed, and pings of well-behaved ones allowed.
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            )
        )
        add_CertificateServiceServicer_to_server(certificate_service, self._server)
        add_AdminServiceServicer_to_server(admin_service, self._server)
        self._services = [CERTIFICATE_SERVICE, ADMIN_SERVICE]
        if istio is not None:
            add_IstioCertificateServiceServicer_to_server(istio, self._server)
            self._services.append(ISTIO_SERVICE)
        if linkerd is not None:
            add_IdentityServicer_to_server(linkerd, self._server)
            self._services.append(LINKERD_SERVICE)
        self._entrance = entrance
        self._health = health_aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (*self._services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self._pending: set[asyncio.Task[None]] = set()

    def listen(self, address: str, credentials: grpc.ServerCredentials | None) -> None:
        """Binds the address, ``host:port`` or ``unix:/path``.

        Raises:
            OSError: It cannot be bound.
        """
        try:
            bound = (
                self._server.add_insecure_port(address)
                if credentials is None
                else self._server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        if bound == 0 and not address.startswith("unix:"):
            raise OSError(f"cannot listen on {address}")

    async def start(self) -> None:
        """Begins to answer."""
        await self._server.start()

    def readiness_listener(self) -> Callable[[Readiness], None]:
        """Tells health checks, overall and per service, what the probe found.

        The AdminService is as ready as the rest: operators look at the same
        store, and a client that balances by health should leave this replica.
        """

        def listen(outcome: Readiness) -> None:
            status = (
                health_pb2.HealthCheckResponse.SERVING
                if outcome.is_ready
                else health_pb2.HealthCheckResponse.NOT_SERVING
            )
            task = asyncio.get_running_loop().create_task(self._set(status))
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)

        return listen

    async def _set(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", *self._services):
            await self._health.set(service, status)

    async def stop(self, grace: float) -> None:
        """Refuses new requests, and lets those in flight end within ``grace`` seconds."""
        loop = asyncio.get_running_loop()
        ends = loop.time() + grace
        async with self._entrance.held():
            stopping = loop.create_task(self._server.stop(max(0.0, ends - loop.time())))
            await asyncio.sleep(0)  # it begins: no connection takes a new request
        await stopping
