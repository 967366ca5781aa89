"""A gRPC server that misbehaves on order, for faults that a real one does not have.

It answers with real certificates of a throw-away CA, so that a client under
test has something to accept between the faults. It knows no policy: what the
service decides is tested against the service.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

import grpc
import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from meshmint.v1 import admin_service_pb2, admin_service_pb2_grpc
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint.v1 import certificate_service_pb2_grpc as pb_grpc

OWN_SPIFFE_ID = "spiffe://example.org/ns/shop/sa/cart"

Answer = Callable[[Any, grpc.ServicerContext], Any]


@dataclass
class Authority:
    """A root and an intermediate with keys in memory."""

    root_key: ec.EllipticCurvePrivateKey
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls) -> Authority:
        """Makes both."""
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = make_certificate("root", root_key.public_key(), "root", root_key, ca=True)
        issuer = make_certificate("issuer", key.public_key(), "root", root_key, ca=True)
        return cls(root_key, root, key, issuer)

    def mint(
        self,
        public_key: Any,
        names: Sequence[x509.GeneralName],
        *,
        ca: bool = False,
        lifetime: timedelta = timedelta(hours=1),
    ) -> x509.Certificate:
        """Signs a leaf with the intermediate."""
        return make_certificate(
            "", public_key, "issuer", self.key, names=names, ca=ca, lifetime=lifetime
        )


def make_certificate(
    subject: str,
    public_key: Any,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    names: Sequence[x509.GeneralName] = (),
    ca: bool = False,
    lifetime: timedelta = timedelta(hours=1),
    path_length: int | None = None,
) -> x509.Certificate:
    """Signs any certificate, right or wrong."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def pem(certificate: x509.Certificate) -> str:
    """The certificate as PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


class Messages:
    """The messages of a stream, as they are read.

    Attributes:
        read: Those that have been.
        has_ended: The client has said that there are no more.
    """

    def __init__(self, messages: Iterator[Any]) -> None:
        self._messages = messages
        self.read: list[Any] = []
        self.has_ended = False

    def __iter__(self) -> Iterator[Any]:
        for message in self._messages:
            self.read.append(message)
            yield message
        self.has_ended = True

    def items(self) -> Iterator[Any]:
        """Their items, one by one."""
        return (item for message in self for item in message.items)

    def read_items(self) -> list[Any]:
        """The items that have been read."""
        return [item for message in list(self.read) for item in message.items]


@dataclass
class Call:
    """One call that arrived; the request of a stream is its messages."""

    method: str
    request: Any
    authorization: str | None
    time_left: float | None


@dataclass
class FakeService(pb_grpc.CertificateServiceServicer, admin_service_pb2_grpc.AdminServiceServicer):
    """Answers with what stands next in ``answers``, and by itself when that is empty.

    Attributes:
        authority: Signs what is answered.
        answers: What the next calls get, in order.
        calls: What has arrived.
        has_calls: Set with the first call.
        released: Set at the end, so that hanging answers do not outlive a test.
        target: Where it listens.
        root_file: File with the root of its TLS certificate, if it has one.
    """

    authority: Authority = field(default_factory=Authority.create)
    answers: list[Answer] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    has_calls: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    target: str = ""
    root_file: Path | None = None

    def Issue(self, request: pb.IssueRequest, context: grpc.ServicerContext) -> pb.IssueResponse:  # noqa: N802 - gRPC's name
        """Makes a key and a certificate."""
        return self._answer("Issue", request, context, self.issue)

    def Sign(self, request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignResponse:  # noqa: N802 - gRPC's name
        """Makes a certificate for a CSR."""
        return self._answer("Sign", request, context, self.sign)

    def IssueStream(  # noqa: N802 - gRPC's name
        self, messages: Iterator[pb.IssueStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.IssueStreamResponse]:
        """Makes a key and a certificate for each item."""
        yield from self._answer("IssueStream", Messages(messages), context, self.issue_items)

    def SignStream(  # noqa: N802 - gRPC's name
        self, messages: Iterator[pb.SignStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.SignStreamResponse]:
        """Makes a certificate for the CSR of each item."""
        yield from self._answer("SignStream", Messages(messages), context, self.sign_items)

    def Revoke(self, request: pb.RevokeRequest, context: grpc.ServicerContext) -> pb.RevokeResponse:  # noqa: N802 - gRPC's name
        """Says that the certificate is revoked."""
        return self._answer("Revoke", request, context, self.revoke)

    def IssueJwtSvid(  # noqa: N802 - gRPC's name
        self, request: pb.IssueJwtSvidRequest, context: grpc.ServicerContext
    ) -> pb.IssueJwtSvidResponse:
        """Makes a token."""
        return self._answer("IssueJwtSvid", request, context, self.issue_jwt_svid)

    def GetChain(  # noqa: N802 - gRPC's name
        self, request: pb.GetChainRequest, context: grpc.ServicerContext
    ) -> pb.GetChainResponse:
        """Gives the chain."""
        return self._answer("GetChain", request, context, self.get_chain)

    def WatchTrustBundle(  # noqa: N802 - gRPC's name
        self, request: pb.WatchTrustBundleRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchTrustBundleResponse]:
        """Streams what the answer yields."""
        yield from self._answer("WatchTrustBundle", request, context, self.watch)

    def PutRole(  # noqa: N802 - gRPC's name
        self, request: admin_service_pb2.PutRoleRequest, context: grpc.ServicerContext
    ) -> admin_service_pb2.PutRoleResponse:
        """Says that the role is new."""
        return self._answer("PutRole", request, context, self.put_role)

    def issue(self, request: pb.IssueRequest, context: grpc.ServicerContext) -> pb.IssueResponse:
        """The right answer to Issue."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in request.names.dns_names]
        leaf = self.authority.mint(key.public_key(), names)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
        return pb.IssueResponse(private_key=private, **self.fields(leaf, request.role))

    def sign(
        self, request: pb.SignRequest, context: grpc.ServicerContext | None
    ) -> pb.SignResponse:
        """The right answer to Sign: the names of the CSR, or else the own SPIFFE ID."""
        csr = read_csr(request)
        try:
            names = list(csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            names = []
        if not any(isinstance(name, x509.UniformResourceIdentifier) for name in names):
            names.append(x509.UniformResourceIdentifier(OWN_SPIFFE_ID))
        leaf = self.authority.mint(csr.public_key(), names)
        return pb.SignResponse(**self.fields(leaf, request.role))

    def issue_items(
        self, messages: Messages, context: grpc.ServicerContext
    ) -> Iterator[pb.IssueStreamResponse]:
        """The right answer to IssueStream: one message for each item."""
        for item in messages.items():
            answer = pb.IssueStreamResponse()
            answer.items.add(id=item.id, response=self.issue(item.request, context))
            yield answer

    def sign_items(
        self, messages: Messages, context: grpc.ServicerContext
    ) -> Iterator[pb.SignStreamResponse]:
        """The right answer to SignStream: one message for each item."""
        for item in messages.items():
            yield self.signed(item)

    def signed(self, *items: Any) -> pb.SignStreamResponse:
        """The right answer to items of a SignStream, in one message."""
        answer = pb.SignStreamResponse()
        for item in items:
            answer.items.add(id=item.id, response=self.sign(item.request, None))
        return answer

    def revoke(self, request: pb.RevokeRequest, context: grpc.ServicerContext) -> pb.RevokeResponse:
        """The right answer to Revoke of a serial number."""
        serial = f"{int(request.serial_number.replace(':', ''), 16):x}"
        return pb.RevokeResponse(serial_number=serial, reason=request.reason)

    def issue_jwt_svid(
        self,
        request: pb.IssueJwtSvidRequest,
        context: grpc.ServicerContext | None,
        **claims: Any,
    ) -> pb.IssueJwtSvidResponse:
        """The right answer to IssueJwtSvid; other claims make it a wrong one."""
        now = datetime.now(UTC).replace(microsecond=0)
        expires_at = now + (request.ttl.ToTimedelta() or timedelta(minutes=5))
        token = jwt.encode(
            {"sub": OWN_SPIFFE_ID, "aud": list(request.audiences), "exp": expires_at, **claims},
            self.authority.key,
            algorithm="ES256",
        )
        return pb.IssueJwtSvidResponse(
            token=token,
            spiffe_id=OWN_SPIFFE_ID,
            issued_at=now,
            expires_at=expires_at,
            role=request.role or "workload",
            jwt_id="4f2c",
        )

    def get_chain(
        self, request: pb.GetChainRequest, context: grpc.ServicerContext
    ) -> pb.GetChainResponse:
        """The right answer to GetChain."""
        response = pb.GetChainResponse(
            issuer=request.issuer or "issuer-1",
            chain=[pem(self.authority.certificate)],
            trust_bundle=[pem(self.authority.root)],
            trust_domain="example.org",
        )
        response.not_after.FromDatetime(self.authority.certificate.not_valid_after_utc)
        return response

    def watch(
        self, request: pb.WatchTrustBundleRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchTrustBundleResponse]:
        """The right answer to WatchTrustBundle: one bundle, and then nothing."""
        yield self.bundle(1)
        self.hang(request, context)

    def bundle(self, sequence: int, *more: x509.Certificate) -> pb.WatchTrustBundleResponse:
        """A bundle with the root, and others beside it."""
        response = pb.WatchTrustBundleResponse(
            trust_domain="example.org",
            trust_bundle=[pem(self.authority.root), *map(pem, more)],
            sequence=sequence,
        )
        response.refresh_hint.FromSeconds(300)
        return response

    def stream(self, *messages: Any, then: Answer | None = None) -> Answer:
        """An answer of these messages, and of an end, fault or silence after them."""

        def answer(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            yield from messages
            if then is not None:
                then(request, context)

        return answer

    def put_role(
        self, request: admin_service_pb2.PutRoleRequest, context: grpc.ServicerContext
    ) -> admin_service_pb2.PutRoleResponse:
        """The right answer to PutRole."""
        return admin_service_pb2.PutRoleResponse(
            role=request.role, change=admin_service_pb2.ROLE_CHANGE_CREATED
        )

    def fields(self, leaf: x509.Certificate, role: str) -> dict[str, Any]:
        """The fields that both answers have."""
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        return {
            "certificate": pem(leaf),
            "chain": [pem(self.authority.certificate)],
            "trust_bundle": [pem(self.authority.root)],
            "serial_number": f"{leaf.serial_number:x}",
            "spiffe_id": uris[0] if uris else "",
            "not_before": leaf.not_valid_before_utc,
            "not_after": leaf.not_valid_after_utc,
            "role": role or "workload",
            "issuer": "issuer-1",
        }

    def hang(self, request: Any, context: grpc.ServicerContext) -> NoReturn:
        """An answer that does not come."""
        self.released.wait(30)
        context.abort(grpc.StatusCode.ABORTED, "released")
        raise AssertionError

    def _answer(
        self, method: str, request: Any, context: grpc.ServicerContext, usual: Answer
    ) -> Any:
        metadata = dict(context.invocation_metadata())
        authorization = metadata.get("authorization")
        self.calls.append(
            Call(
                method,
                request,
                str(authorization) if authorization is not None else None,
                context.time_remaining(),
            )
        )
        self.has_calls.set()
        answer = self.answers.pop(0) if self.answers else usual
        return answer(request, context)


def read_csr(request: pb.SignRequest) -> x509.CertificateSigningRequest:
    """The CSR of a request, in whichever form it came."""
    if request.csr_der:
        return x509.load_der_x509_csr(request.csr_der)
    return x509.load_pem_x509_csr(request.csr_pem.encode())


def refuse(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    violations: Sequence[tuple[str, str]] = (),
    retry_after: float | None = None,
) -> Answer:
    """An answer that fails as the service fails: with details."""
    status = status_of(code, message, reason, violations, retry_after)
    return refuse_raw(code, message, status.SerializeToString())


def status_of(
    code: grpc.StatusCode,
    message: str,
    reason: str,
    violations: Sequence[tuple[str, str]] = (),
    retry_after: float | None = None,
) -> status_pb2.Status:
    """What the service fails with."""
    status = status_pb2.Status(code=code.value[0], message=message)
    if reason:
        _add(status, error_details_pb2.ErrorInfo(reason=reason, domain="meshmint"))
    if violations:
        _add(
            status,
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=name, description=text)
                    for name, text in violations
                ]
            ),
        )
    if retry_after is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromTimedelta(timedelta(seconds=retry_after))
        _add(status, info)
    return status


def refuse_raw(code: grpc.StatusCode, message: str, details: bytes) -> Answer:
    """An answer that fails with any bytes as its details."""

    def answer(request: Any, context: grpc.ServicerContext) -> NoReturn:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        context.abort(code, message)
        raise AssertionError

    return answer


def _add(status: status_pb2.Status, detail: Any) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


@contextlib.contextmanager
def fake_service(directory: Path, *, tls: bool = False, address: str = "") -> Iterator[FakeService]:
    """Starts one on a free loopback port or the address given, and stops it in the end."""
    service = FakeService()
    pool = ThreadPoolExecutor(8)
    server = grpc.server(pool)
    pb_grpc.add_CertificateServiceServicer_to_server(service, server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(service, server)
    if tls:
        service.root_file = directory / "root.pem"
        service.root_file.write_text(pem(service.authority.root))
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = service.authority.mint(
            key.public_key(), [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
        )
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        chain = (pem(leaf) + pem(service.authority.certificate)).encode()
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials([(private, chain)])
        )
    else:
        port = server.add_insecure_port(address or "127.0.0.1:0")
    service.target = address or f"127.0.0.1:{port}"
    server.start()
    try:
        yield service
    finally:
        service.released.set()
        server.stop(None).wait()
        pool.shutdown()
