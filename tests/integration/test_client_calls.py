"""The client against a server that fails: what it retries, refuses and tells."""

from __future__ import annotations

import asyncio
import concurrent.futures
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.rpc import error_details_pb2, status_pb2
from meshmint import (
    AdminClient,
    AnswerRefused,
    AsyncAdminClient,
    AsyncClient,
    Client,
    ConfigurationError,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    MeshmintError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RetryPolicy,
    TokenFile,
    TokenUnavailable,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    generate_key,
    make_csr,
)
from meshmint.v1 import certificate_service_pb2 as pb
from support.fake_service import (
    OWN_SPIFFE_ID,
    Authority,
    FakeService,
    fake_service,
    pem,
    read_csr,
    refuse,
    refuse_raw,
)

FAST = RetryPolicy(max_attempts=3, initial_delay=0.001, max_delay=0.001)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[FakeService]:
    with fake_service(tmp_path) as running:
        yield running


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with Client(service.target, token="token-1", insecure=True, retry=FAST) as made:
        yield made


def test_unavailable_is_tried_again_and_the_pause_that_the_server_asks_for_is_kept(
    service: FakeService, client: Client
) -> None:
    service.answers.append(
        refuse(grpc.StatusCode.UNAVAILABLE, "no", reason="KEY_UNAVAILABLE", retry_after=0.3)
    )
    begun = time.monotonic()
    assert client.request_svid().spiffe_id == OWN_SPIFFE_ID
    assert time.monotonic() - begun >= 0.3
    assert [call.method for call in service.calls] == ["Sign", "Sign"]
    assert service.calls[0].request == service.calls[1].request


def test_every_attempt_has_the_same_request_id_and_every_call_another(
    service: FakeService, client: Client
) -> None:
    names = ["a.example"]
    csr = make_csr(generate_key(), dns_names=names)
    unavailable = refuse(grpc.StatusCode.UNAVAILABLE, "no", reason="X")
    service.answers.append(unavailable)
    client.request_svid()
    service.answers.append(unavailable)
    client.request_certificate(dns_names=names)
    service.answers.append(unavailable)
    client.issue(dns_names=names)
    service.answers.append(unavailable)
    client.sign(csr)
    client.sign(csr)
    ids = [call.request.request_id for call in service.calls]
    assert len(ids) == 9
    assert ids[0:8:2] == ids[1:8:2]
    assert len(set(ids)) == 5
    assert all(re.fullmatch("[A-Za-z0-9_-]{32,128}", request_id) for request_id in ids)


def test_what_a_stopping_server_cancels_is_tried_again(
    service: FakeService, client: Client
) -> None:
    service.answers.append(refuse_raw(grpc.StatusCode.CANCELLED, "CANCELLED", b""))
    assert client.request_svid().spiffe_id == OWN_SPIFFE_ID
    service.answers += [refuse_raw(grpc.StatusCode.CANCELLED, "CANCELLED", b"")] * 4
    with pytest.raises(Unavailable, match="restarting") as caught:
        client.request_svid()
    assert caught.value.code == "CANCELLED"
    assert len(service.calls) == 2 + FAST.max_attempts


def test_a_retry_that_would_pass_the_deadline_is_not_waited_for(service: FakeService) -> None:
    service.answers.append(
        refuse(grpc.StatusCode.UNAVAILABLE, "no", reason="KEY_UNAVAILABLE", retry_after=60)
    )
    with (
        Client(service.target, token="t", insecure=True, timeout=2) as client,
        pytest.raises(Unavailable) as caught,
    ):
        client.request_svid()
    assert caught.value.retry_after == 60
    assert len(service.calls) == 1


def test_the_deadline_covers_all_attempts_together(service: FakeService) -> None:
    unavailable = refuse(grpc.StatusCode.UNAVAILABLE, "no", reason="X", retry_after=0.4)
    service.answers += [unavailable, service.hang]
    begun = time.monotonic()
    with (
        Client(service.target, token="t", insecure=True, timeout=1, retry=FAST) as client,
        pytest.raises(DeadlineExceeded, match="within the time-out"),
    ):
        client.request_svid()
    assert time.monotonic() - begun > 0.9
    first, second = (call.time_left for call in service.calls)
    assert first is not None
    assert second is not None
    assert second <= first - 0.35


def test_attempts_end_with_the_last_error(service: FakeService, client: Client) -> None:
    service.answers += [
        refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="OVERLOADED", retry_after=0)
    ] * 4
    with pytest.raises(ResourceExhausted, match="full"):
        client.issue("web", dns_names=["a.example"])
    assert len(service.calls) == FAST.max_attempts


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDenied),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
        (grpc.StatusCode.FAILED_PRECONDITION, FailedPrecondition),
        (grpc.StatusCode.NOT_FOUND, NotFound),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNIMPLEMENTED, Unimplemented),
        (grpc.StatusCode.INTERNAL, InternalError),
        (grpc.StatusCode.ABORTED, MeshmintError),
    ],
)
def test_what_is_not_temporary_is_raised_at_once_with_all_its_details(
    service: FakeService, client: Client, code: grpc.StatusCode, error: type[MeshmintError]
) -> None:
    violations = [("names.uris[0]", "not yours"), ("validity.ttl", "too long")]
    service.answers.append(refuse(code, "do this", reason="A_REASON", violations=violations))
    with pytest.raises(error) as caught:
        client.request_svid()
    assert type(caught.value) is error
    assert caught.value.code == code.name
    assert caught.value.reason == "A_REASON"
    assert caught.value.message == "do this"
    assert caught.value.violations == tuple(Violation(*pair) for pair in violations)
    assert "validity.ttl: too long" in str(caught.value)
    assert len(service.calls) == 1


def test_details_that_cannot_be_parsed_leave_code_and_message(
    service: FakeService, client: Client
) -> None:
    service.answers.append(refuse_raw(grpc.StatusCode.PERMISSION_DENIED, "no", b"\xff\xff\xff"))
    with pytest.raises(PermissionDenied, match="no") as caught:
        client.request_svid()
    assert caught.value.violations == ()


def test_a_detail_that_cannot_be_parsed_leaves_the_others(
    service: FakeService, client: Client
) -> None:
    status = status_pb2.Status()
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="A_REASON"))
    endless = error_details_pb2.RetryInfo()
    endless.retry_delay.seconds = 1 << 62
    status.details.add().Pack(endless)
    status.details.add(type_url=status.details[0].type_url, value=b"\xff\xff\xff")
    service.answers.append(
        refuse_raw(grpc.StatusCode.PERMISSION_DENIED, "no", status.SerializeToString())
    )
    with pytest.raises(PermissionDenied, match="no") as caught:
        client.request_svid()
    assert caught.value.reason == "A_REASON"
    assert caught.value.retry_after is None


def test_a_message_over_the_size_limit_is_not_sent_again(
    service: FakeService, client: Client
) -> None:
    with pytest.raises(ResourceExhausted):
        client.sign(b"\x30" * 5_000_000)
    assert service.calls == []


def test_a_server_that_is_not_there_is_unavailable_and_named(tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/nobody.sock"
    with (
        Client(target, token="t", insecure=True, retry=FAST) as client,
        pytest.raises(Unavailable, match=r"cannot reach unix:.*nobody\.sock"),
    ):
        client.get_chain()


def test_token_file_is_read_again_at_every_attempt(service: FakeService, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")

    def replace_token(request: object, context: grpc.ServicerContext) -> None:
        token.write_text("second\n")
        refuse(grpc.StatusCode.UNAVAILABLE, "later", reason="X", retry_after=0)(request, context)

    service.answers.append(replace_token)
    with Client(service.target, token=TokenFile(token), insecure=True, retry=FAST) as client:
        client.request_svid()
        token.write_text("third")
        client.request_svid()
    assert [call.authorization for call in service.calls] == [
        "Bearer first",
        "Bearer second",
        "Bearer third",
    ]


def test_without_a_token_nothing_is_sent(service: FakeService, tmp_path: Path) -> None:
    with (
        Client(service.target, token=tmp_path / "missing", insecure=True) as client,
        pytest.raises(TokenUnavailable, match="missing"),
    ):
        client.request_svid()
    assert service.calls == []


def test_get_chain_sends_no_credential(service: FakeService, client: Client) -> None:
    chain = client.get_chain()
    assert chain.trust_domain == "example.org"
    assert service.calls[0].authorization is None


def test_a_certificate_for_another_key_is_refused(service: FakeService, client: Client) -> None:
    def swap(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        other = make_csr(generate_key()).public_bytes(Encoding.DER)
        return service.sign(pb.SignRequest(csr_der=other), context)

    csr = make_csr(generate_key())
    service.answers += [swap, swap, swap]
    with pytest.raises(AnswerRefused, match="another public key"):
        client.request_svid()
    with pytest.raises(AnswerRefused, match="another public key"):
        client.request_certificate(dns_names=["a.example"])
    with pytest.raises(AnswerRefused, match="another public key"):
        client.sign(csr)


def test_a_private_key_that_does_not_fit_is_refused(service: FakeService, client: Client) -> None:
    def mix_up(request: pb.IssueRequest, context: grpc.ServicerContext) -> pb.IssueResponse:
        answer, other = service.issue(request, context), service.issue(request, context)
        answer.private_key = other.private_key
        return answer

    service.answers.append(mix_up)
    with pytest.raises(AnswerRefused, match="another public key"):
        client.issue(dns_names=["a.example"])


def test_a_certificate_that_does_not_chain_to_the_bundle_is_refused(
    service: FakeService, client: Client
) -> None:
    def other_root(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        answer = service.sign(request, context)
        answer.trust_bundle[:] = [pem(Authority.create().root)]
        return answer

    def other_chain(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        answer = service.sign(request, context)
        answer.chain[:] = [pem(Authority.create().certificate)]
        return answer

    def no_roots(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        answer = service.sign(request, context)
        answer.trust_bundle[:] = []
        return answer

    service.answers += [other_root, other_chain, no_roots]
    with pytest.raises(AnswerRefused, match="not signed by any root"):
        client.request_svid()
    with pytest.raises(AnswerRefused, match="not signed by the next in its chain"):
        client.request_svid()
    with pytest.raises(AnswerRefused, match="no trust bundle"):
        client.request_svid()


def test_an_svid_with_another_spiffe_id_than_asked_for_is_refused(
    service: FakeService, client: Client
) -> None:
    def other_id(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        name = x509.UniformResourceIdentifier("spiffe://example.org/other")
        leaf = service.authority.mint(read_csr(request).public_key(), [name])
        return pb.SignResponse(**service.fields(leaf, ""))

    def untold(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        answer = service.sign(request, context)
        answer.spiffe_id = "spiffe://example.org/told"
        return answer

    def two_ids(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        names = [x509.UniformResourceIdentifier(f"spiffe://example.org/{n}") for n in "ab"]
        leaf = service.authority.mint(read_csr(request).public_key(), names)
        return pb.SignResponse(**service.fields(leaf, ""))

    def dns_only(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        leaf = service.authority.mint(read_csr(request).public_key(), [x509.DNSName("a.example")])
        return pb.SignResponse(**service.fields(leaf, ""))

    service.answers += [other_id, untold, two_ids, dns_only]
    with pytest.raises(AnswerRefused, match="was asked for"):
        client.request_svid(spiffe_id=OWN_SPIFFE_ID)
    with pytest.raises(AnswerRefused, match="the answer says"):
        client.request_svid()
    for _ in range(2):
        with pytest.raises(AnswerRefused, match="no SPIFFE ID"):
            client.request_svid()


def test_a_ca_certificate_is_not_taken_for_an_svid(service: FakeService, client: Client) -> None:
    def make_ca(request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:
        name = x509.UniformResourceIdentifier(OWN_SPIFFE_ID)
        leaf = service.authority.mint(read_csr(request).public_key(), [name], ca=True)
        return pb.SignResponse(**service.fields(leaf, ""))

    service.answers.append(make_ca)
    with pytest.raises(AnswerRefused, match="CA certificate"):
        client.request_svid()


def test_an_answer_that_is_no_certificate_is_refused(service: FakeService, client: Client) -> None:
    service.answers.append(lambda request, context: pb.SignResponse(certificate="nonsense"))
    with pytest.raises(AnswerRefused, match="cannot be parsed"):
        client.request_svid(dns_names=["a.example"])


def test_the_csr_of_request_svid_asks_for_nothing_but_what_was_given(
    service: FakeService, client: Client
) -> None:
    client.request_svid()
    client.request_svid("web", spiffe_id=OWN_SPIFFE_ID, dns_names=["a.example"])
    bare, full = (call.request for call in service.calls)
    assert len(list(read_csr(bare).extensions)) == 0
    assert list(read_csr(bare).subject) == []
    assert bare.names == pb.CertificateNames()
    names = read_csr(full).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [OWN_SPIFFE_ID]
    assert names.get_values_for_type(x509.DNSName) == ["a.example"]
    assert full.role == "web"


def test_what_a_csr_cannot_say_goes_beside_it(service: FakeService, client: Client) -> None:
    end = datetime(2031, 1, 1, tzinfo=UTC)
    client.request_certificate(
        "web",
        common_name="a.example",
        ip_addresses=["10.0.0.1"],
        user_ids=["u1"],
        not_after=end,
    )
    request = service.calls[0].request
    assert request.names == pb.CertificateNames(user_ids=["u1"])
    assert request.validity.not_after.ToDatetime(tzinfo=UTC) == end
    assert read_csr(request).subject.rfc4514_string() == "CN=a.example"


@pytest.mark.parametrize("form", ["text", "pem", "der", "parsed"])
def test_sign_takes_a_csr_in_any_form(service: FakeService, client: Client, form: str) -> None:
    csr = make_csr(ec.generate_private_key(ec.SECP384R1()))
    forms = {
        "text": csr.public_bytes(Encoding.PEM).decode(),
        "pem": csr.public_bytes(Encoding.PEM),
        "der": csr.public_bytes(Encoding.DER),
        "parsed": csr,
    }
    signed = client.sign(forms[form], "web", ttl=timedelta(minutes=5))  # type: ignore[arg-type]
    assert signed.certificate.public_key() == csr.public_key()
    assert service.calls[0].request.validity.ttl.seconds == 300


def test_a_closed_client_says_so(service: FakeService) -> None:
    client = Client(service.target, token="t", insecure=True)
    client.close()
    with pytest.raises(ConfigurationError, match="closed"):
        client.get_chain()


def test_closing_a_client_ends_its_call_and_its_pause(service: FakeService) -> None:
    service.answers += [
        service.hang,
        refuse(grpc.StatusCode.UNAVAILABLE, "no", reason="X", retry_after=60),
    ]
    for number in (1, 2):
        client = Client(service.target, token="t", insecure=True, timeout=100)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            call = pool.submit(client.request_svid)
            while len(service.calls) < number:
                time.sleep(0.01)
            client.close()
            with pytest.raises(ConfigurationError, match="closed"):
                call.result(30)


def test_over_tls_the_roots_given_decide(tmp_path: Path) -> None:
    with fake_service(tmp_path, tls=True) as service:
        with Client(service.target, token="t", root_certificates=service.root_file) as client:
            assert client.request_svid().spiffe_id == OWN_SPIFFE_ID
        other = pem(Authority.create().root)
        with (
            Client(service.target, token="t", root_certificates=other, retry=FAST) as client,
            pytest.raises(Unavailable, match="not trusted: check that the CA file"),
        ):
            client.request_svid()


def test_over_tls_the_name_of_the_server_counts(tmp_path: Path) -> None:
    with fake_service(tmp_path, tls=True) as service:
        for name, is_good in (("localhost", True), ("other.example", False)):
            with Client(
                service.target,
                token="t",
                root_certificates=service.root_file,
                server_name=name,
                retry=FAST,
            ) as client:
                if is_good:
                    client.get_chain()
                else:
                    with pytest.raises(Unavailable, match="names this host"):
                        client.get_chain()


def test_a_proxy_from_the_environment_never_sees_the_token(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with Client(service.target, token="t", insecure=True, retry=FAST) as client:
        client.request_svid()
    assert len(service.calls) == 1


def test_a_unix_socket_does(tmp_path: Path) -> None:
    with (
        fake_service(tmp_path, address=f"unix:{tmp_path}/meshmint.sock") as service,
        Client(service.target, token="t", insecure=True) as client,
    ):
        assert client.request_svid().spiffe_id == OWN_SPIFFE_ID


async def test_the_asynchronous_client_retries_and_verifies_alike(service: FakeService) -> None:
    service.answers += [
        refuse(grpc.StatusCode.UNAVAILABLE, "no", reason="X", retry_after=0.1),
        refuse_raw(grpc.StatusCode.CANCELLED, "CANCELLED", b""),
        refuse(grpc.StatusCode.PERMISSION_DENIED, "no", reason="ROLE_DENIED"),
    ]

    async def token() -> str:
        await asyncio.sleep(0)
        return "async-token"

    async with AsyncClient(service.target, token=token, insecure=True, retry=FAST) as client:
        with pytest.raises(PermissionDenied) as caught:
            await client.issue("web")
        assert caught.value.reason == "ROLE_DENIED"
        svid = await client.request_svid(key_algorithm="rsa-2048")
        assert svid.private_key.public_key() == svid.certificate.public_key()
        assert (await client.issue("web", dns_names=["a.example"])).role == "web"
        assert (await client.sign(make_csr(generate_key("ed25519")))).spiffe_id == OWN_SPIFFE_ID
        certificate = await client.request_certificate(uris=["spiffe://example.org/x"])
        assert certificate.spiffe_id == "spiffe://example.org/x"
        assert (await client.get_chain("old")).issuer == "old"
    assert {call.authorization for call in service.calls[:-1]} == {"Bearer async-token"}
    with pytest.raises(ConfigurationError, match="closed"):
        await client.get_chain()


async def test_the_deadline_also_covers_a_token_source_that_hangs(service: FakeService) -> None:
    async def token() -> str:
        await asyncio.sleep(60)
        return "late"

    async with AsyncClient(service.target, token=token, insecure=True, timeout=0.2) as client:
        with pytest.raises(DeadlineExceeded, match="token source"):
            await client.request_svid()
    assert service.calls == []


async def test_cancelling_an_asynchronous_call_ends_it(service: FakeService) -> None:
    service.answers.append(service.hang)
    async with AsyncClient(service.target, token="t", insecure=True) as client:
        task = asyncio.create_task(client.request_svid())
        await asyncio.to_thread(service.has_calls.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_an_asynchronous_token_source_is_refused_by_the_client_that_waits(
    service: FakeService,
) -> None:
    async def token() -> str:
        return "token"

    with (
        Client(service.target, token=token, insecure=True) as client,
        pytest.raises(ConfigurationError, match="AsyncClient"),
    ):
        client.request_svid()


async def test_put_role_sends_the_document_and_tells_what_became_of_it(
    service: FakeService,
) -> None:
    document = {"name": "web", "max_ttl": "720h", "key_usage": [], "require_cn": False}
    with AdminClient(service.target, token="t", insecure=True) as client:
        result = client.put_role(document, validate_only=True)
    assert result.change == "created"
    assert result.role == {
        "name": "web",
        "max_ttl": "2592000s",
        "key_usage": [],
        "require_cn": False,
    }
    assert service.calls[0].request.validate_only
    async with AsyncAdminClient(service.target, token="t", insecure=True) as again:
        assert (await again.put_role(document)).change == "created"
        with pytest.raises(Unimplemented):
            await again.get_role("web")
