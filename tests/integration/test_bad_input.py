"""Hostile and mistaken requests: the right code, advice, nothing minted, no INTERNAL."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from google.rpc import error_details_pb2, status_pb2
from meshmint.v1 import certificate_service_pb2 as pb
from support.csr import make_csr, make_key, pem
from support.service import Service

URI = x509.UniformResourceIdentifier


@pytest.fixture(scope="module")
def svid_role(service: Service) -> str:
    return service.put_role({"spiffe": "matching", "key_type": "any",
                             "allowed_uri_sans": ["spiffe://mesh.example/ns/*"]})  # fmt: skip


@pytest.fixture(scope="module")
def dns_role(service: Service) -> str:
    return service.put_role(
        {
            "key_type": "ec",
            "require_cn": False,
            "allowed_domains": ["example.com"],
            "allow_subdomains": True,
            "allow_wildcard_certificates": False,
            "max_ttl": "24h",
        }
    )


@pytest.fixture(autouse=True)
def _nothing_minted_and_no_bug(service: Service) -> Iterator[None]:
    before = service.newest_serial()
    yield
    assert service.newest_serial() == before, "a certificate was minted"
    assert not any(line.get("level") == "error" for line in service.new_log_lines())


class Refusal:
    """What a client sees of an error."""

    def __init__(self, error: grpc.RpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        metadata = dict(error.trailing_metadata() or ())
        assert metadata.get("x-request-id")
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad_request)
        self.reason = info.reason
        self.violations = {v.field: v.description for v in bad_request.field_violations}
        assert info.domain == "meshmint"
        assert len(self.message) > 15, "the message says what to do"


def refused(call: object, *arguments: object, **options: object) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **options)  # type: ignore[operator]
    return Refusal(caught.value)


# --- credentials -----------------------------------------------------------------------


def tampered(token: str, **header: object) -> str:
    head, rest = token.split(".", 1)
    padded = base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))
    document = {**json.loads(padded), **header}
    encoded = base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()
    return f"{encoded}.{rest}"


def hmac_jwt(claims: dict[str, object], secret: bytes, kid: str) -> str:
    """What a confused verifier would take: HS256 keyed with the public key's PEM."""

    def encode(raw: bytes) -> str:
        return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()

    header = json.dumps({"alg": "HS256", "typ": "JWT", "kid": kid}).encode()
    signed = f"{encode(header)}.{encode(json.dumps(claims).encode())}"
    return f"{signed}.{encode(hmac.digest(secret, signed.encode(), 'sha256'))}"


def bad_tokens(service: Service) -> dict[str, str]:
    tokens = service.tokens
    attacker = make_key("rsa-2048")
    own_jwk = {"kty": "RSA", "n": "AQAB", "e": "AQAB"}
    valid = service.token()
    claims = tokens.kubernetes_claims("shop", "cart")
    public_pem = tokens.public_pem()
    return {
        "not a JWT": "open sesame",
        "empty": "",
        "three dots": "a.b.c.d",
        "alg none": tampered(valid, alg="none").rsplit(".", 1)[0] + ".",
        "HS256 with the RSA public key": hmac_jwt(claims, public_pem, tokens.kid),
        "unknown kid": tokens.jwt(claims, headers={"kid": "nobody"}),
        "signed by another key": tokens.jwt(claims, key=attacker),
        "jku": tokens.jwt(claims, key=attacker, headers={"jku": "https://evil.example/jwks"}),
        "x5u": tokens.jwt(claims, key=attacker, headers={"x5u": "https://evil.example/x5u"}),
        "embedded jwk": tokens.jwt(claims, key=attacker, headers={"jwk": own_jwk}),
        "payload changed": valid.split(".")[0] + "." + service.token(namespace="evil").split(".")[1]
        + "." + valid.split(".")[2],
        "wrong issuer": tokens.jwt({**claims, "iss": "https://other.example"}),
        "wrong audience": service.token(audience="somebody-else"),
        "missing audience": tokens.jwt({**claims, "aud": None}),
        "expired": service.token(ttl=-3600),
        "no expiry": tokens.jwt({**claims, "exp": None}),
        "not yet valid": tokens.jwt({**claims, "nbf": claims["exp"] - 1}),
        "17 KiB": valid + "A" * (17 * 1024),
        "63 KiB": "A" * (63 * 1024),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        "not a JWT", "empty", "three dots", "alg none", "HS256 with the RSA public key",
        "unknown kid", "signed by another key", "jku", "x5u", "embedded jwk", "payload changed",
        "wrong issuer", "wrong audience", "missing audience", "expired", "no expiry",
        "not yet valid", "17 KiB", "63 KiB",
    ],
)  # fmt: skip
def test_bad_token_is_unauthenticated(service: Service, svid_role: str, kind: str) -> None:
    token = bad_tokens(service)[kind]
    refusal = refused(service.issue, pb.IssueRequest(role=svid_role), token=token)
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED, refusal.message
    if len(token) > 20:
        assert token not in refusal.message


def test_metadata_over_its_limit_is_refused_before_it_is_held(service: Service) -> None:
    for size in (64 * 1024, 1024 * 1024):
        with pytest.raises(grpc.RpcError) as caught:
            service.issue(pb.IssueRequest(), token="A" * size)
        # By gRPC itself: our code, which would have said UNAUTHENTICATED, never saw it.
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "metadata size" in (caught.value.details() or "")

    # The connection and its other calls are none the worse for it.
    refusal = refused(service.stub.Issue, pb.IssueRequest(), timeout=10)
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED


def test_missing_credential_is_unauthenticated(service: Service, svid_role: str) -> None:
    refusal = refused(service.stub.Issue, pb.IssueRequest(role=svid_role), timeout=10)
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED
    assert "authorization" in refusal.message.lower()


@pytest.mark.parametrize("value", ["Basic dXNlcjpwYXNz", "Bearer", "bearer  ", "token"])
def test_other_authorization_is_unauthenticated(
    service: Service, svid_role: str, value: str
) -> None:
    refusal = refused(
        service.stub.Issue, pb.IssueRequest(role=svid_role), timeout=10,
        metadata=[("authorization", value)],
    )  # fmt: skip
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED


def test_two_credentials_are_unauthenticated(service: Service, svid_role: str) -> None:
    bearer = ("authorization", f"Bearer {service.token()}")
    refusal = refused(
        service.stub.Issue, pb.IssueRequest(role=svid_role), timeout=10, metadata=[bearer, bearer]
    )
    assert refusal.code is grpc.StatusCode.UNAUTHENTICATED


def test_role_for_others_and_unknown_role_look_the_same(service: Service) -> None:
    others = service.put_role({"spiffe": "own", "callers": [{"namespace": "other"}]})
    answers = [
        refused(service.issue, pb.IssueRequest(role=role)) for role in (others, "no-such-role")
    ]
    assert {answer.code for answer in answers} == {grpc.StatusCode.PERMISSION_DENIED}
    assert len({answer.reason for answer in answers}) == 1
    assert answers[0].message.replace(others, "X") == answers[1].message.replace(
        "no-such-role", "X"
    )


def test_valid_token_of_an_unknown_namespace_gets_no_role(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "callers": [{"namespace": "shop"}]})
    refusal = refused(
        service.issue, pb.IssueRequest(role=role), token=service.token(namespace="elsewhere")
    )
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED


# --- CSRs ------------------------------------------------------------------------------


def armoured(body: str) -> str:
    return f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"


def broken_signature() -> str:
    der = bytearray(make_csr().public_bytes(serialization.Encoding.DER))
    der[-3] ^= 0x55
    return armoured(base64.encodebytes(bytes(der)).decode())


MALFORMED_CSRS = {
    "empty": lambda: "",
    "white space": lambda: " \n",
    "not base64": lambda: armoured("%%%%\n"),
    "cut short": lambda: pem(make_csr())[:200],
    "another PEM block": lambda: pem(make_csr()).replace("CERTIFICATE REQUEST", "CERTIFICATE"),
    "two blocks": lambda: pem(make_csr()) * 2,
    "broken self-signature": broken_signature,
    "DSA": lambda: pem(make_csr(make_key("dsa-2048"))),
    "unknown curve": lambda: pem(make_csr(make_key("ec-k256"))),
}  # fmt: skip


@pytest.mark.parametrize("kind", MALFORMED_CSRS)
def test_malformed_csr_is_an_invalid_argument(service: Service, svid_role: str, kind: str) -> None:
    csr = MALFORMED_CSRS[kind]()
    refusal = refused(service.sign, pb.SignRequest(role=svid_role, csr_pem=csr))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal.message
    assert refusal.violations


@pytest.mark.parametrize(
    "der", [b"", b"\x30", b"\x30\x80", b"\xff" * 100, b"\x30\x84\xff\xff\xff\xff"]
)
def test_malformed_der_csr_is_an_invalid_argument(
    service: Service, svid_role: str, der: bytes
) -> None:
    refusal = refused(service.sign, pb.SignRequest(role=svid_role, csr_der=der))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT


def test_missing_csr_is_an_invalid_argument(service: Service, svid_role: str) -> None:
    refusal = refused(service.sign, pb.SignRequest(role=svid_role))
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT


def test_key_that_is_too_small_is_refused(service: Service, svid_role: str) -> None:
    csr = pem(make_csr(make_key("rsa-1024")))
    refusal = refused(service.sign, pb.SignRequest(role=svid_role, csr_pem=csr))
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert "2048" in str(refusal.violations)


GREEDY_EXTENSIONS = {
    "CA:TRUE": (x509.BasicConstraints(ca=True, path_length=None), True),
    "unknown extension": (
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5.6"), b"\x05\x00"),
        False,
    ),
    "keyCertSign": (
        x509.KeyUsage(
            digital_signature=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, key_cert_sign=True, crl_sign=False,
            encipher_only=False, decipher_only=False,
        ),
        True,
    ),
    "OCSP signing": (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False),
    "name constraints": (x509.NameConstraints([x509.DNSName("com")], None), True),
}  # fmt: skip


@pytest.mark.parametrize("kind", GREEDY_EXTENSIONS)
def test_csr_that_asks_for_more_than_a_leaf_is_refused(
    service: Service, svid_role: str, kind: str
) -> None:
    csr = pem(
        make_csr(sans=[URI("spiffe://mesh.example/ns/a")], extensions=[GREEDY_EXTENSIONS[kind]])
    )
    refusal = refused(service.sign, pb.SignRequest(role=svid_role, csr_pem=csr))
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED, refusal.message
    assert refusal.violations


# SPIFFE IDs that are malformed, and well-formed ones that the role does not grant.
MALFORMED_IDS = [
    "spiffe://mesh.example/ns/../evil",
    "spiffe://mesh.example/ns/%2e%2e/evil",
    "spiffe://mesh.example/ns/a?admin=1",
    "spiffe://mesh.example/ns/a#x",
    "spiffe://mesh.example:8443/ns/a",
    "spiffe://Mesh.Example/ns/a",
    "SPIFFE://mesh.example/ns/a",
    "spiffe://user@mesh.example/ns/a",
    "spiffe://mesh.example/ns/a\n",
    "spiffe://mesh.example\n/ns/a",
    "spiffe://mesh.example/ns/a/",
    "spiffe://mesh.example//ns/a",
    "spiffe://mesh.example/ns/" + "a" * 2048,
]
FOREIGN_IDS = [
    "spiffe://other.example/ns/a",
    "spiffe://mesh.example.evil.com/ns/a",
    "spiffe://mesh.example/other/a",
    "spiffe://mesh.example",
]


@pytest.mark.parametrize("spiffe_id", MALFORMED_IDS + FOREIGN_IDS)
@pytest.mark.parametrize("rpc", ["issue", "sign"])
def test_spiffe_id_that_is_not_granted_is_refused(
    service: Service, svid_role: str, spiffe_id: str, rpc: str
) -> None:
    if rpc == "issue":
        names = pb.CertificateNames(uris=[spiffe_id])
        refusal = refused(
            service.issue,
            pb.IssueRequest(role=svid_role, names=names, key_algorithm=pb.KEY_ALGORITHM_EC_P256),
        )
    else:
        csr = pem(make_csr(sans=[URI._init_without_validation(spiffe_id)]))
        refusal = refused(service.sign, pb.SignRequest(role=svid_role, csr_pem=csr))
    expected = (
        {grpc.StatusCode.INVALID_ARGUMENT}
        if spiffe_id in MALFORMED_IDS
        else {grpc.StatusCode.PERMISSION_DENIED}
    )
    assert refusal.code in expected, refusal.message
    assert refusal.violations


def test_two_spiffe_ids_are_refused(service: Service, svid_role: str) -> None:
    sans = [URI("spiffe://mesh.example/ns/a"), URI("spiffe://mesh.example/ns/b")]
    refusal = refused(
        service.sign, pb.SignRequest(role=svid_role, csr_pem=pem(make_csr(sans=sans)))
    )
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED


def test_csr_subject_of_somebody_else_is_refused(service: Service, dns_role: str) -> None:
    csr = make_csr(subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "evil.com")]))
    refusal = refused(service.sign, pb.SignRequest(role=dns_role, csr_pem=pem(csr)))
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED


# --- names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("*.example.com", grpc.StatusCode.PERMISSION_DENIED),
        ("example.com", grpc.StatusCode.PERMISSION_DENIED),
        ("evil.com", grpc.StatusCode.PERMISSION_DENIED),
        ("notexample.com", grpc.StatusCode.PERMISSION_DENIED),
        ("bücher.evil.com", grpc.StatusCode.PERMISSION_DENIED),
        ("a.example.com.", grpc.StatusCode.INVALID_ARGUMENT),
        ("a..example.com", grpc.StatusCode.INVALID_ARGUMENT),
        ("", grpc.StatusCode.INVALID_ARGUMENT),
        ("a" * 64 + ".example.com", grpc.StatusCode.INVALID_ARGUMENT),
        ("a.example.com\n", grpc.StatusCode.INVALID_ARGUMENT),
        ("a.example.com\x00.evil.com", grpc.StatusCode.INVALID_ARGUMENT),
        ("xn--a.example.com", grpc.StatusCode.INVALID_ARGUMENT),
        (".".join(["a" * 60] * 5) + ".example.com", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_dns_name_outside_the_role_is_refused(
    service: Service, dns_role: str, name: str, code: grpc.StatusCode
) -> None:
    request = pb.IssueRequest(role=dns_role, names=pb.CertificateNames(dns_names=[name]))
    refusal = refused(service.issue, request)
    assert refusal.code is code, refusal.message
    assert next(iter(refusal.violations)).startswith("names.dns_names[0]")


def test_ten_thousand_names_are_refused(service: Service, dns_role: str) -> None:
    names = [f"h{i}.example.com" for i in range(10_000)]
    request = pb.IssueRequest(role=dns_role, names=pb.CertificateNames(dns_names=names))
    refusal = refused(service.issue, request)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT


def test_every_violation_is_told_at_once(service: Service, dns_role: str) -> None:
    request = pb.IssueRequest(
        role=dns_role,
        names=pb.CertificateNames(
            dns_names=["a.evil.com", "ok.example.com", "b.evil.com"], uris=["https://evil.com/"]
        ),
    )
    refusal = refused(service.issue, request)
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert {"names.dns_names[0]", "names.dns_names[2]", "names.uris[0]"} <= set(refusal.violations)
    assert "names.dns_names[1]" not in refusal.violations


def test_thirty_violations_still_reach_the_client(service: Service, dns_role: str) -> None:
    names = [f"{'x' * 60}.{'y' * 60}.h{i}.evil.com" for i in range(300)]
    request = pb.IssueRequest(role=dns_role, names=pb.CertificateNames(dns_names=names))
    refusal = refused(service.issue, request)
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert any("more violations" in description for description in refusal.violations.values())


# --- validity --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seconds", [-1, 0, -(10**9), 10**11, 315_576_000_000, 9_223_372_036_854_775_807]
)
def test_absurd_ttl_is_an_invalid_argument(service: Service, dns_role: str, seconds: int) -> None:
    request = pb.IssueRequest(role=dns_role, names=pb.CertificateNames(dns_names=["a.example.com"]))
    request.validity.ttl.seconds = seconds
    refusal = refused(service.issue, request)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal.message
    assert "validity.ttl" in refusal.violations


def test_not_after_beyond_the_maximum_is_refused(service: Service, dns_role: str) -> None:
    request = pb.IssueRequest(role=dns_role, names=pb.CertificateNames(dns_names=["a.example.com"]))
    request.validity.not_after.FromDatetime(datetime.now(UTC) + timedelta(hours=25))
    refusal = refused(service.issue, request)
    assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
    assert "validity.not_after" in refusal.violations


@pytest.mark.parametrize("seconds", [-(2**62), 2**62, 253_402_300_800])
def test_absurd_not_after_is_an_invalid_argument(
    service: Service, dns_role: str, seconds: int
) -> None:
    request = pb.IssueRequest(role=dns_role, names=pb.CertificateNames(dns_names=["a.example.com"]))
    request.validity.not_after.seconds = seconds
    refusal = refused(service.issue, request)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal.message


# --- the rest --------------------------------------------------------------------------


def test_unknown_key_algorithm_is_an_invalid_argument(service: Service, svid_role: str) -> None:
    request = pb.IssueRequest(role=svid_role)
    request.key_algorithm = 99  # type: ignore[assignment]
    refusal = refused(service.issue, request)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT


def test_template_that_cannot_be_rendered_grants_nothing(service: Service) -> None:
    role = service.put_role(
        {
            "key_type": "ec",
            "require_cn": False,
            "allowed_uri_sans": ["spiffe://mesh.example/claims/{{ claims.department }}"],
            "allowed_uri_sans_template": True,
        }
    )
    for uri in ("spiffe://mesh.example/claims/", "spiffe://mesh.example/claims/x"):
        request = pb.IssueRequest(role=role, names=pb.CertificateNames(uris=[uri]))
        refusal = refused(service.issue, request)
        assert refusal.code in (
            grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
        )  # fmt: skip


def test_message_over_the_size_limit_is_refused(service: Service, svid_role: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        service.sign(pb.SignRequest(role=svid_role, csr_pem="A" * (1024 * 1024 + 1)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_garbage_instead_of_protobuf_is_no_internal_bug(service: Service) -> None:
    call = service.channel.unary_unary("/meshmint.v1.CertificateService/Issue")
    with pytest.raises(grpc.RpcError):
        call(b"\xff\xff\xff\xff", timeout=10)


def test_deadline_that_cannot_be_met_mints_nothing(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "rsa", "key_bits": 4096})
    with pytest.raises(grpc.RpcError) as caught:
        service.issue(pb.IssueRequest(role=role), timeout=0.005)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    "document",
    [
        {"key_type": "dsa"},
        {"key_type": "rsa", "key_bits": 1024},
        {"ttl": "2h", "max_ttl": "1h"},
        {"allowed_ip_sans_cidr": ["10.0.0.0/99"]},
        {"key_usage": ["Signing"]},
        {"ext_key_usage": ["everything"]},
        {"ext_key_usage_oids": ["abc"]},
        {"ext_key_usage": ["OCSPSigning"]},
        {"generate_lease": True},
        {"allowed_uri_sans": ["spiffe://Example.org/*"]},
        {"allowed_uri_sans": ["{{ nope"], "allowed_uri_sans_template": True},
        {"cn_validations": ["disabled", "email"]},
        {"spiffe": "perhaps"},
        {"spiffe": "own", "client_flag": False},
        {"spiffe": "own", "key_usage": ["CertSign"]},
    ],
)
def test_bad_role_is_refused_when_it_is_put(service: Service, document: dict[str, object]) -> None:
    refusal = refused(service.put_role, document)
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal.message
    assert refusal.reason == "INVALID_ROLE"
    assert refusal.violations


def test_refusal_with_many_long_names_reaches_a_client_with_default_limits(
    service: Service, dns_role: str
) -> None:
    long_names = [pb.OtherName(type_id="1.2.3", value="é" * 900 + str(n)) for n in range(100)]
    names = pb.CertificateNames(other_names=long_names)
    credentials = grpc.ssl_channel_credentials(service.ca_file.read_bytes())
    with grpc.secure_channel(service.address, credentials) as channel:
        stub = service.stub_of(channel)
        for _ in range(5):  # between their soft and their hard limit, clients throw dice
            refusal = refused(
                stub.Issue,
                pb.IssueRequest(role=dns_role, names=names),
                timeout=30,
                metadata=service.metadata(service.token()),
            )
            assert refusal.code is grpc.StatusCode.PERMISSION_DENIED
            assert len(refusal.violations) > 5
