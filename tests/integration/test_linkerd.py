"""Linkerd's protocol as its proxy speaks it, against a real service."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from meshmint.third_party.linkerd import identity_pb2
from meshmint.third_party.linkerd.identity_pb2_grpc import IdentityStub
from meshmint.v1 import certificate_service_pb2 as pb
from support.csr import make_csr, make_key
from support.proxies import LINKERD_AUDIENCE, Proxies, WithoutAlpn, linkerd_csr, refusal

CART = ("shop", "cart")
# How a client begins HTTP/2 (RFC 9113 section 3.4), with empty settings.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def token(proxies: Proxies, *account: str, **options: object) -> str:
    return proxies.token(*(account or CART), **{"audience": LINKERD_AUDIENCE, **options})  # type: ignore[arg-type]


def pem_of(der: bytes) -> str:
    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()


def test_a_proxy_gets_a_certificate_in_der(proxies: Proxies, tmp_path: Path) -> None:
    key = make_key()
    name = proxies.linkerd_name(*CART)
    response = proxies.certify(name, linkerd_csr(name, key), token(proxies))

    leaf = x509.load_der_x509_certificate(response.leaf_certificate)
    assert leaf.public_key() == key.public_key()
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(san.value) == [x509.DNSName(name)]
    assert san.critical
    assert not leaf.subject.rdns
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH} <= set(usage)
    assert response.valid_until.ToDatetime(tzinfo=UTC) == leaf.not_valid_after_utc
    assert leaf.not_valid_after_utc > datetime.now(UTC) + timedelta(hours=23)
    chain = [pem_of(der) for der in response.intermediate_certificates]
    root = proxies.service.ca_file.read_text()
    assert chain
    assert root not in chain
    proxies.verify(tmp_path, pem_of(response.leaf_certificate), chain, root)

    line = proxies.last_audit(f"{leaf.serial_number:x}")
    assert line["rpc"] == "Identity/Certify"
    assert line["role"] == "linkerd"
    assert line["caller"] == "system:serviceaccount:shop:cart"


def test_a_name_longer_than_a_common_name_can_be_is_granted(proxies: Proxies) -> None:
    account = "a-service-account-with-a-name-as-long-as-some-people-make-them"
    name = proxies.linkerd_name("shop", account)
    assert len(name) > 64

    response = proxies.certify(name, linkerd_csr(name), token(proxies, "shop", account))

    assert response.leaf_certificate


def test_a_csr_without_a_common_name_is_as_good(proxies: Proxies) -> None:
    name = proxies.linkerd_name(*CART)
    csr = make_csr(sans=[x509.DNSName(name)]).public_bytes(Encoding.DER)

    assert proxies.certify(name, csr, token(proxies)).leaf_certificate


@pytest.mark.parametrize("field", ["identity", "token", "certificate_signing_request"])
def test_what_is_missing_is_named(proxies: Proxies, field: str) -> None:
    name = proxies.linkerd_name(*CART)
    request = identity_pb2.CertifyRequest(
        identity=name,
        token=token(proxies).encode(),
        certificate_signing_request=linkerd_csr(name),
    )
    request.ClearField(field)

    error = refusal(proxies.linkerd.Certify, request, timeout=30)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in error.details()
    assert proxies.audit_of(error)["rpc"] == "Identity/Certify"


@pytest.mark.parametrize(
    "other",
    [
        "other.shop.serviceaccount.identity.linkerd.cluster.local",
        "cart.other.serviceaccount.identity.linkerd.cluster.local",
        "cart.shop.serviceaccount.identity.linkerd.cluster.local.",
        "cart.shop.serviceaccount.identity.linkerd.cluster.local\n",
        "CART.shop.serviceaccount.identity.linkerd.cluster.local",
        "cart.shop.serviceaccount.identity.linkerd.mesh.example",
        "cart.shop.serviceaccount.identity.other.cluster.local",
        "x.cart.shop.serviceaccount.identity.linkerd.cluster.local",
        "spiffe://mesh.example/ns/shop/sa/cart",
    ],
)
def test_another_identity_than_the_tokens_is_refused(proxies: Proxies, other: str) -> None:
    name = proxies.linkerd_name(*CART)
    error = refusal(proxies.certify, other, linkerd_csr(name), token(proxies))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert name in error.details()


NAME = "cart.shop.serviceaccount.identity.linkerd.cluster.local"
OTHER = "other.shop.serviceaccount.identity.linkerd.cluster.local"


@pytest.mark.parametrize(
    ("common_name", "names"),
    [
        (None, []),
        (NAME, []),
        (None, [x509.DNSName(OTHER)]),
        (None, [x509.DNSName(NAME), x509.DNSName(OTHER)]),
        (None, [x509.DNSName(NAME), x509.DNSName(NAME)]),
        ("other", [x509.DNSName(NAME)]),
        (None, [x509.DNSName(NAME), x509.RFC822Name("cart@shop")]),
        (None, [x509.DNSName(NAME), x509.UniformResourceIdentifier("spiffe://mesh.example/x")]),
        (None, [x509.UniformResourceIdentifier(f"spiffe://mesh.example/{NAME}")]),
    ],
)
def test_a_csr_for_anything_else_is_refused(
    proxies: Proxies, common_name: str | None, names: list[x509.GeneralName]
) -> None:
    csr = make_csr(common_name=common_name, sans=names).public_bytes(Encoding.DER)

    error = refusal(proxies.certify, NAME, csr, token(proxies))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


@pytest.mark.parametrize("kind", ["nothing", "pem", "cut", "signature"])
def test_a_malformed_csr_is_refused(proxies: Proxies, kind: str) -> None:
    good = linkerd_csr(NAME)
    csr = {
        "nothing": b"nothing",
        "pem": x509.load_der_x509_csr(good).public_bytes(Encoding.PEM),
        "cut": good[:-5],
        "signature": good[:-1] + bytes([good[-1] ^ 1]),
    }[kind]

    error = refusal(proxies.certify, NAME, csr, token(proxies))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("text", [b"nonsense", b"\xff\xfe\x00", b"a.b.c", b"x" * 20_000])
def test_what_is_no_token_is_an_invalid_argument(proxies: Proxies, text: bytes) -> None:
    error = refusal(proxies.certify, NAME, linkerd_csr(NAME), text)

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "options", [{"audience": "somebody-else"}, {"ttl": -60}], ids=["audience", "expired"]
)
def test_a_token_that_does_not_hold_is_a_failed_precondition(
    proxies: Proxies, options: dict[str, object]
) -> None:
    error = refusal(proxies.certify, NAME, linkerd_csr(NAME), token(proxies, **options))

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert error.details() == "The token could not be authenticated."


def test_the_credential_of_the_metadata_counts_for_nothing(proxies: Proxies) -> None:
    name = proxies.linkerd_name(*CART)
    error = refusal(
        proxies.linkerd.Certify,
        identity_pb2.CertifyRequest(
            identity=name,
            token=token(proxies, "shop", "other").encode(),
            certificate_signing_request=linkerd_csr(name),
        ),
        timeout=30,
        metadata=proxies.service.metadata(token(proxies)),
    )

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


# --- the listener for proxies, which offer no ALPN -------------------------------------


@pytest.fixture
def without_alpn(proxies: Proxies) -> Iterator[WithoutAlpn]:
    target = proxies.service.config["linkerd"]["listen"]
    with WithoutAlpn(target, proxies.service.ca_file, "localhost") as through:
        yield through


def test_grpcs_own_port_ends_a_connection_without_alpn(proxies: Proxies) -> None:
    """If this fails, gRPC has learned it, and the listener for proxies can go."""
    tls = ssl.create_default_context(cafile=str(proxies.service.ca_file))
    host, port = proxies.service.address.split(":")
    with (
        socket.create_connection((host, int(port)), 30) as plain,
        tls.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(PREFACE)
        # An error if it was ended before this end had written everything.
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b""


def test_a_proxy_without_alpn_is_served_and_its_address_is_known(
    proxies: Proxies, without_alpn: WithoutAlpn
) -> None:
    with grpc.insecure_channel(without_alpn.address) as channel:
        response = IdentityStub(channel).Certify(
            identity_pb2.CertifyRequest(
                identity=NAME,
                token=token(proxies).encode(),
                certificate_signing_request=linkerd_csr(NAME),
            ),
            timeout=30,
        )

    leaf = x509.load_der_x509_certificate(response.leaf_certificate)
    line = proxies.last_audit(f"{leaf.serial_number:x}")
    assert [line["peer"]] == without_alpn.sources


def test_a_client_with_alpn_is_served_there_as_well(proxies: Proxies) -> None:
    service = proxies.service
    roots = grpc.ssl_channel_credentials(service.ca_file.read_bytes())
    with grpc.secure_channel(service.config["linkerd"]["listen"], roots) as channel:
        assert service.stub_of(channel).GetChain(pb.GetChainRequest(), timeout=30).chain


def test_large_messages_pass_both_ways_and_many_calls_at_once(
    proxies: Proxies, without_alpn: WithoutAlpn
) -> None:
    with grpc.insecure_channel(without_alpn.address) as channel:
        request = identity_pb2.CertifyRequest(
            identity=NAME,
            token=token(proxies).encode(),
            certificate_signing_request=b"x" * 500_000,
        )
        calls = [IdentityStub(channel).Certify.future(request, timeout=30) for _ in range(20)]
        codes = {call.exception(timeout=30).code() for call in calls}

    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}


def test_who_comes_without_tls_is_not_let_in(proxies: Proxies) -> None:
    with grpc.insecure_channel(proxies.service.config["linkerd"]["listen"]) as channel:
        error = refusal(IdentityStub(channel).Certify, identity_pb2.CertifyRequest(), timeout=30)

    assert error.code() is grpc.StatusCode.UNAVAILABLE
