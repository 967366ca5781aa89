"""IssueStream and SignStream: many certificates over one stream, each as by itself."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from cryptography import x509
from google.rpc import error_details_pb2, status_pb2
from meshmint.v1 import certificate_service_pb2 as pb
from support.csr import make_csr, make_key, pem
from support.service import Service, ServiceFactory

SVID = {"spiffe": "own", "key_type": "ec"}
LIMIT = 60


def issue_items(*ids: str, role: str, **fields: Any) -> pb.IssueStreamRequest:
    request = pb.IssueStreamRequest()
    for name in ids:
        request.items.add(id=name, request=pb.IssueRequest(role=role, **fields))
    return request


def collect(answers: Iterator[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for answer in answers:
        for item in answer.items:
            assert item.id not in found
            found[item.id] = item
    return found


def reason_of(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


class Open:
    """A stream that stays open for as long as a test wants."""

    def __init__(self, service: Service, token: str | None = None) -> None:
        self._sent: queue.SimpleQueue[pb.IssueStreamRequest | None] = queue.SimpleQueue()
        self._channel = service.new_channel()
        self.answers = service.stub_of(self._channel).IssueStream(
            iter(self._sent.get, None),
            metadata=service.metadata(token or service.token()),
            timeout=LIMIT,
        )

    def send(self, request: pb.IssueStreamRequest) -> None:
        self._sent.put(request)

    def finish(self) -> None:
        self._sent.put(None)

    def close(self) -> None:
        self.finish()
        self.answers.cancel()
        self._channel.close()


def send_until_refused(stream: Open, role: str) -> None:
    for number in range(1000):
        threading.Event().wait(0.1)
        stream.send(issue_items(str(number), role=role))
        next(stream.answers)


@pytest.fixture
def svid_role(service: Service) -> str:
    role = service.put_role(SVID)
    service.wait_until_everywhere(role)
    return role


def test_every_item_gets_its_own_certificate_under_its_id(service: Service, svid_role: str) -> None:
    ids = [f"item-{number}" for number in range(300)]
    messages = [issue_items(*ids[start : start + 100], role=svid_role) for start in (0, 100, 200)]
    with service.new_channel() as channel:
        found = collect(
            service.stub_of(channel).IssueStream(
                iter(messages), metadata=service.metadata(service.token()), timeout=LIMIT
            )
        )
    assert set(found) == set(ids)
    certificates = [
        x509.load_pem_x509_certificate(item.response.certificate.encode())
        for item in found.values()
    ]
    assert len({one.serial_number for one in certificates}) == 300
    assert len({one.public_key().public_numbers() for one in certificates}) == 300  # type: ignore[union-attr]
    for item, certificate in zip(found.values(), certificates, strict=True):
        issuer = x509.load_pem_x509_certificate(item.response.chain[0].encode())
        certificate.verify_directly_issued_by(issuer)
        assert item.response.private_key.startswith("-----BEGIN PRIVATE KEY-----")
    for item in list(found.values())[::60]:
        assert service.get_record(item.response.serial_number).role == svid_role


def test_sign_stream_signs_each_csr_and_one_bad_item_fails_alone(
    service: Service, svid_role: str
) -> None:
    key = make_key()
    request = pb.SignStreamRequest()
    request.items.add(id="good", request=pb.SignRequest(role=svid_role, csr_pem=pem(make_csr(key))))
    request.items.add(id="malformed", request=pb.SignRequest(role=svid_role, csr_pem="nonsense"))
    request.items.add(id="denied", request=pb.SignRequest(role="nobody's", csr_pem="x"))
    request.items.add(request=pb.SignRequest(role=svid_role))
    request.items.add(id="x" * 129, request=pb.SignRequest(role=svid_role))
    with service.new_channel() as channel:
        found = collect(
            service.stub_of(channel).SignStream(
                iter([request]), metadata=service.metadata(service.token()), timeout=LIMIT
            )
        )
    good = x509.load_pem_x509_certificate(found["good"].response.certificate.encode())
    assert good.public_key() == key.public_key()
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert found["malformed"].error.code == invalid
    assert found["denied"].error.code == grpc.StatusCode.PERMISSION_DENIED.value[0]
    assert reason_of(found["denied"].error) == "ROLE_DENIED"
    assert found[""].error.code == invalid
    assert found["x" * 128].error.code == invalid


def test_an_answer_comes_while_the_stream_is_open(service: Service, svid_role: str) -> None:
    stream = Open(service)
    try:
        for number in range(3):
            stream.send(issue_items(str(number), role=svid_role))
            (item,) = next(stream.answers).items
            assert item.id == str(number)
            assert item.response.certificate
        stream.finish()
        assert list(stream.answers) == []
    finally:
        stream.close()


@pytest.mark.parametrize("token", ["", "not-a-token"])
def test_a_stream_without_a_credential_ends(service: Service, token: str) -> None:
    with service.new_channel() as channel:
        metadata = service.metadata(token) if token else None
        stream = service.stub_of(channel).IssueStream(
            iter([issue_items("1", role="any")]), metadata=metadata, timeout=LIMIT
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_a_stream_ends_when_its_credential_does(service: Service, svid_role: str) -> None:
    stream = Open(service, service.token(ttl=3))
    try:
        stream.send(issue_items("first", role=svid_role))
        assert next(stream.answers).items[0].response.certificate
        with pytest.raises(grpc.RpcError) as caught:
            send_until_refused(stream, svid_role)
    finally:
        stream.close()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_a_client_that_sends_and_does_not_read_is_held_back_and_loses_nothing(
    service: Service, svid_role: str
) -> None:
    ids = [str(number) for number in range(2000)]
    messages = (issue_items(*ids[n : n + 200], role=svid_role) for n in range(0, 2000, 200))
    with service.new_channel() as channel:
        stream = service.stub_of(channel).IssueStream(
            messages, metadata=service.metadata(service.token()), timeout=LIMIT * 2
        )
        threading.Event().wait(1)
        assert set(collect(stream)) == set(ids)


def test_a_client_that_leaves_stops_the_work(service: Service, svid_role: str) -> None:
    with service.new_channel() as channel:
        stream = service.stub_of(channel).IssueStream(
            iter([issue_items(*map(str, range(256)), role=svid_role)] * 20),
            metadata=service.metadata(service.token()),
            timeout=LIMIT,
        )
        next(stream)
        stream.cancel()
    # The service answers others, and says of none that it met a bug.
    assert service.issue(pb.IssueRequest(role=svid_role)).certificate
    assert not [line for line in service.new_log_lines() if "bug" in line.get("event", "")]


def test_draining_ends_streams_with_unavailable_after_their_answers(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start(workers=1) as service:
        role = service.put_role(SVID)
        service.wait_until_everywhere(role)
        stream = Open(service)
        try:
            stream.send(issue_items("before", role=role))
            assert next(stream.answers).items[0].id == "before"
            service.process.terminate()
            with pytest.raises(grpc.RpcError) as caught:
                list(stream.answers)
        finally:
            stream.close()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert "another stream" in caught.value.details()  # type: ignore[attr-defined]
