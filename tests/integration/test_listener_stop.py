"""The gRPC listener stops under load: what has reached it is answered."""

from __future__ import annotations

import asyncio
import time

import grpc
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint.v1.admin_service_pb2_grpc import AdminServiceServicer
from meshmint.v1.certificate_service_pb2_grpc import (
    CertificateServiceServicer,
    CertificateServiceStub,
)
from meshmint_server.audit import AuditLog
from meshmint_server.grpc_api import Edge, GrpcListener
from meshmint_server.grpc_api.edge import Call, rpc
from support.service import free_port

REQUESTS = 60


class Chains(CertificateServiceServicer):
    def __init__(self) -> None:
        self.edge = Edge(None, AuditLog(), 30.0)  # type: ignore[arg-type]

    @rpc("CertificateService/GetChain")
    async def GetChain(self, request: pb.GetChainRequest, call: Call) -> pb.GetChainResponse:  # noqa: N802
        await asyncio.sleep(0)
        return pb.GetChainResponse(issuer=request.issuer)


async def test_requests_that_the_event_loop_has_not_taken_yet_are_answered() -> None:
    chains = Chains()
    listener = GrpcListener(chains, AdminServiceServicer(), chains.edge.entrance)  # type: ignore[arg-type]
    address = f"127.0.0.1:{free_port()}"
    listener.listen(address, None)
    await listener.start()
    with grpc.insecure_channel(address) as channel:
        stub = CertificateServiceStub(channel)
        await asyncio.to_thread(stub.GetChain, pb.GetChainRequest(), timeout=30)
        calls = [
            stub.GetChain.future(pb.GetChainRequest(issuer=f"{number}"), timeout=30)
            for number in range(REQUESTS)
        ]
        # gRPC's threads read them all, and the loop takes none.
        time.sleep(1)  # noqa: ASYNC251
        await listener.stop(30)
        answers = [await asyncio.to_thread(call.result) for call in calls]
    assert [answer.issuer for answer in answers] == [f"{number}" for number in range(REQUESTS)]
