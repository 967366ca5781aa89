"""Replies that never arrive: the client asks again, and nothing is minted twice."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from meshmint import AsyncClient, Client, generate_key, make_csr
from meshmint.results import SignedCertificate
from meshmint.v1 import certificate_service_pb2 as pb
from support.csr import make_csr as make_test_csr
from support.csr import make_key, pem
from support.service import Service, ServiceFactory
from support.swallowing_proxy import SwallowingProxy

ROLE: dict[str, object] = {"spiffe": "own", "key_type": "ec"}
CSR = make_csr(generate_key())

CALLS: dict[str, Callable[[Any, str], Any]] = {
    "issue": lambda client, role: client.issue(role),
    "sign": lambda client, role: client.sign(CSR, role),
    "request_svid": lambda client, role: client.request_svid(role),
}


@pytest.fixture(scope="module")
def role(service: Service) -> str:
    role = service.put_role(ROLE)
    service.wait_until_everywhere(role)
    return role


async def _lose_the_reply(
    service: Service, role: str, before: set[str], proxy: SwallowingProxy
) -> str:
    """Waits until a certificate is on record and cuts the connection before it is told."""
    while not (new := await asyncio.to_thread(_recorded, service, role) - before):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    proxy.swallows = False
    await proxy.cut()
    (serial,) = new
    return serial


def _recorded(service: Service, role: str) -> set[str]:
    return {record.serial_number for record in service.list_records(role=role)}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_client_whose_reply_is_lost_gets_the_same_certificate(
    service: Service, call: str, is_async: bool
) -> None:
    role = service.put_role(ROLE)
    service.wait_until_everywhere(role)
    before = _recorded(service, role)
    async with SwallowingProxy.before(service.address) as proxy:
        options: dict[str, Any] = {
            "token": service.token(),
            "root_certificates": service.ca_file,
            "timeout": 60,
        }
        issued: SignedCertificate
        if is_async:
            async with AsyncClient(proxy.address, **options) as client:
                await client.get_chain()
                proxy.swallows = True
                serial, issued = await asyncio.gather(
                    _lose_the_reply(service, role, before, proxy), CALLS[call](client, role)
                )
        else:
            with Client(proxy.address, **options) as blocking:
                await asyncio.to_thread(blocking.get_chain)
                proxy.swallows = True
                serial, issued = await asyncio.gather(
                    _lose_the_reply(service, role, before, proxy),
                    asyncio.to_thread(CALLS[call], blocking, role),
                )
    assert issued.serial_number == serial
    assert _recorded(service, role) - before == {serial}


def _refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str, list[str]]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    return caught.value.code(), info.reason, [one.field for one in bad.field_violations]


def test_replicas_on_one_postgresql_give_one_answer(
    service_factory: ServiceFactory, postgres_url: str
) -> None:
    with service_factory.start(store=postgres_url) as first, first.replica() as second:
        role = first.put_role(ROLE)
        second.wait_until_everywhere(role)
        count = len(first.list_records(role=role))
        csr = pem(make_test_csr(make_key()))
        for method, request in (
            ("Issue", pb.IssueRequest(role=role, request_id=secrets.token_hex(16))),
            ("Sign", pb.SignRequest(role=role, csr_pem=csr, request_id=secrets.token_hex(16))),
        ):
            answers = [
                getattr(stub, method)(request, timeout=30, metadata=first.metadata(replica.token()))
                for replica in (first, second)
                for stub in (replica.stub,) * 3
            ]
            assert all(answer == answers[0] for answer in answers)
            count += 1
            assert len(second.list_records(role=role)) == count


def test_ids_that_are_malformed_or_used_before_are_refused_and_never_logged(
    service: Service, role: str
) -> None:
    used = secrets.token_urlsafe(24)
    service.issue(pb.IssueRequest(role=role, request_id=used))
    other = pb.IssueRequest(role=role, request_id=used)
    other.validity.ttl.seconds = 60
    assert _refusal(lambda: service.issue(other)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
        ["request_id"],
    )
    hostile = [f"{used}\n", f"{used}\0", f"{used[:31]}é", used[:31], used * 40]
    for request_id in hostile:
        malformed = pb.IssueRequest(role=role, request_id=request_id)
        assert _refusal(lambda: service.issue(malformed)) == (  # noqa: B023
            grpc.StatusCode.INVALID_ARGUMENT,
            "REQUEST_ID_INVALID",
            ["request_id"],
        )
    service.issue(pb.IssueRequest(role=role, request_id=used))
    lines = service.log_lines()
    assert any(line.get("event") == "reply repeated" for line in lines)
    assert used[:31] not in service.whole_log() + json.dumps(lines)


def test_another_caller_with_the_same_id_gets_a_certificate_of_its_own(
    service: Service, role: str
) -> None:
    request = pb.IssueRequest(role=role, request_id=secrets.token_hex(16))
    mine = service.issue(request)
    theirs = service.issue(request, token=service.token("shop", "thief"))
    assert theirs.spiffe_id.endswith("/thief")
    assert theirs.private_key != mine.private_key
    assert service.issue(request) == mine


def test_a_stream_gives_the_reply_of_the_unary_call_with_the_same_id(
    service: Service, role: str
) -> None:
    request = pb.IssueRequest(role=role, request_id=secrets.token_hex(16))
    once = service.issue(request)
    items = [pb.IssueStreamRequest.Item(id=str(n), request=request) for n in range(3)]
    answers = service.stub.IssueStream(
        iter([pb.IssueStreamRequest(items=items)]),
        timeout=30,
        metadata=service.metadata(service.token()),
    )
    replies = [item.response for answer in answers for item in answer.items]
    assert replies == [once] * 3
