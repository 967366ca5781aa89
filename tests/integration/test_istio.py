"""Istio's protocol as pilot-agent and ztunnel speak it, against a real service and API server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from support.csr import make_csr, make_key, pem
from support.proxies import Proxies, pilot_agent_csr, refusal, ztunnel_csr

CART = ("shop", "cart")


def leaf_of(response: object) -> x509.Certificate:
    return x509.load_pem_x509_certificate(response.cert_chain[0].encode())  # type: ignore[attr-defined]


def uris_of(certificate: x509.Certificate) -> list[str]:
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [name.value for name in san.value]  # every name, of whatever kind


def test_pilot_agent_gets_a_certificate_for_its_rsa_key(proxies: Proxies, tmp_path: Path) -> None:
    key = make_key("rsa-2048")
    spiffe_id = proxies.spiffe_id(*CART)
    response = proxies.create(pilot_agent_csr(spiffe_id, key), proxies.token(*CART))

    leaf = leaf_of(response)
    assert uris_of(leaf) == [spiffe_id]
    assert leaf.public_key() == key.public_key()
    *chain, roots = response.cert_chain
    assert len(response.cert_chain) >= 3
    for element in chain:
        assert element.endswith("\n")
        assert element.count("BEGIN CERTIFICATE") == 1
    assert roots.endswith("\n")
    assert roots == proxies.service.ca_file.read_text()
    proxies.verify(tmp_path, chain[0], chain[1:], roots)

    line = proxies.last_audit(f"{leaf.serial_number:x}")
    assert line["rpc"] == "IstioCertificateService/CreateCertificate"
    assert line["role"] == "istio"
    assert line["caller"] == "system:serviceaccount:shop:cart"
    assert "actor" not in line


def test_a_csr_without_names_is_given_the_callers_identity(proxies: Proxies) -> None:
    response = proxies.create(pem(make_csr()), proxies.token(*CART))

    assert uris_of(leaf_of(response)) == [proxies.spiffe_id(*CART)]


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (0, timedelta(hours=1)),
        (-5, timedelta(hours=1)),
        (-(2**63), timedelta(hours=1)),
        (600, timedelta(minutes=10)),
        (86_400, timedelta(hours=2)),
        (2**63 - 1, timedelta(hours=2)),
    ],
)
def test_the_lifetime_is_the_roles_or_shortened_to_it(
    proxies: Proxies, asked: int, given: timedelta
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    response = proxies.create(
        ztunnel_csr(proxies.spiffe_id(*CART)), proxies.token(*CART), ttl=asked
    )
    after = datetime.now(UTC)

    assert before + given <= leaf_of(response).not_valid_after_utc <= after + given


@pytest.mark.parametrize(
    "names",
    [
        [x509.DNSName("cart.shop.svc")],
        [x509.IPAddress(IPv4Address("10.0.0.1"))],
        [x509.RFC822Name("cart@mesh.example")],
        [x509.UniformResourceIdentifier("spiffe://mesh.example/ns/shop/sa/cart")] * 2,
        [x509.UniformResourceIdentifier("spiffe://mesh.example/ns/shop/sa/other")],
        [x509.UniformResourceIdentifier("spiffe://other.example/ns/shop/sa/cart")],
        [x509.UniformResourceIdentifier("spiffe://mesh.example/ns/shop/sa/cart/")],
        [
            x509.UniformResourceIdentifier("spiffe://mesh.example/ns/shop/sa/cart"),
            x509.DNSName("cart.shop.svc"),
        ],
    ],
    ids=["dns", "ip", "email", "twice", "other-account", "other-domain", "slash", "beside"],
)
def test_names_beyond_the_identity_are_refused(
    proxies: Proxies, names: list[x509.GeneralName]
) -> None:
    error = refusal(proxies.create, pem(make_csr(sans=names)), proxies.token(*CART))

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "own identity" in error.details()


def test_a_common_name_is_refused(proxies: Proxies) -> None:
    error = refusal(proxies.create, pem(make_csr(common_name="cart")), proxies.token(*CART))

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "csr.common_name" in error.details()


@pytest.mark.parametrize("csr", ["", "-----BEGIN CERTIFICATE REQUEST-----\n", "\x00", "nothing"])
def test_a_malformed_csr_is_refused(proxies: Proxies, csr: str) -> None:
    error = refusal(proxies.create, csr, proxies.token(*CART))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_csr_whose_signature_does_not_hold_is_refused(proxies: Proxies) -> None:
    good = make_csr(sans=[x509.UniformResourceIdentifier(proxies.spiffe_id(*CART))])
    der = bytearray(good.public_bytes(Encoding.DER))
    der[-1] ^= 1
    csr = pem(x509.load_der_x509_csr(bytes(der)))

    error = refusal(proxies.create, csr, proxies.token(*CART))

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "self-signature" in error.details()


def test_whoever_is_not_known_hears_one_constant_text(proxies: Proxies) -> None:
    csr = ztunnel_csr(proxies.spiffe_id(*CART))
    tokens = [
        proxies.token(*CART, audience="somebody-else"),
        proxies.token(*CART, ttl=-60),
        proxies.token(*CART)[:-8] + "AAAAAAAA",
        "nonsense",
        "",
    ]
    errors = [refusal(proxies.create, csr, token) for token in tokens]

    assert {error.code() for error in errors} == {grpc.StatusCode.UNAUTHENTICATED}
    assert {error.details() for error in errors} == {"The request could not be authenticated."}
    details = [
        [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
        for error in errors
    ]
    assert all(one == details[0] for one in details)
    reasons = {
        line["reason"]
        for line in proxies.service.log_lines()
        if line.get("rpc") == "IstioCertificateService/CreateCertificate"
        and line.get("decision") == "refused"
    }
    assert {"AUDIENCE_MISMATCH", "CREDENTIAL_EXPIRED", "CREDENTIAL_MALFORMED"} <= reasons


def test_a_signer_chooses_a_role_only_if_one_stands_for_it(proxies: Proxies) -> None:
    csr = ztunnel_csr(proxies.spiffe_id(*CART))
    response = proxies.create(csr, proxies.token(*CART), CertSigner="signers.example/short")
    leaf = leaf_of(response)

    assert leaf.not_valid_after_utc <= datetime.now(UTC) + timedelta(minutes=10)
    assert proxies.last_audit(f"{leaf.serial_number:x}")["role"] == "istio-short"

    error = refusal(proxies.create, csr, proxies.token(*CART), CertSigner="istio-short")
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "istio.cert_signers" in error.details()
    line = proxies.audit_of(error)
    assert line["caller"] == "system:serviceaccount:shop:cart"
    assert line["reason"] == "INVALID_REQUEST"


@pytest.mark.parametrize("value", [5, True, ["a"], {"a": "b"}])
@pytest.mark.parametrize("key", ["CertSigner", "ImpersonatedIdentity"])
def test_metadata_that_is_no_text_is_refused(proxies: Proxies, key: str, value: object) -> None:
    error = refusal(
        proxies.create,
        ztunnel_csr(proxies.spiffe_id(*CART)),
        proxies.token(*CART),
        **{key: value},
    )

    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert proxies.audit_of(error)["caller"] == "system:serviceaccount:shop:cart"


# --- ztunnel --------------------------------------------------------------------------


def test_ztunnel_gets_a_certificate_for_a_pod_of_its_node(proxies: Proxies, tmp_path: Path) -> None:
    ztunnel = proxies.ztunnel()
    node = ztunnel["spec"]["nodeName"]
    proxies.add_pod("shop", "cart", node=node)
    spiffe_id = proxies.spiffe_id(*CART)
    key = make_key()

    response = proxies.create(
        ztunnel_csr(spiffe_id, key),
        proxies.ztunnel_token(ztunnel),
        ImpersonatedIdentity=spiffe_id,
    )

    leaf = leaf_of(response)
    assert uris_of(leaf) == [spiffe_id]
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert leaf.public_key().public_bytes(*form) == key.public_key().public_bytes(*form)
    *chain, roots = response.cert_chain
    proxies.verify(tmp_path, chain[0], chain[1:], roots)
    line = proxies.last_audit(f"{leaf.serial_number:x}")
    assert line["caller"] == "system:serviceaccount:shop:cart"
    assert line["actor"] == "system:serviceaccount:istio-system:ztunnel"
    assert proxies.service.get_record(f"{leaf.serial_number:x}").caller == line["caller"]


def test_a_token_that_does_not_say_its_node_is_enough(proxies: Proxies) -> None:
    ztunnel = proxies.ztunnel()
    proxies.add_pod("shop", "cart", node=ztunnel["spec"]["nodeName"])
    spiffe_id = proxies.spiffe_id(*CART)

    response = proxies.create(
        ztunnel_csr(spiffe_id),
        proxies.ztunnel_token(ztunnel, node=None),
        ImpersonatedIdentity=spiffe_id,
    )

    assert uris_of(leaf_of(response)) == [spiffe_id]


def test_the_csr_must_be_for_the_identity_that_is_asked_for(proxies: Proxies) -> None:
    ztunnel = proxies.ztunnel()
    proxies.add_pod("shop", "cart", node=ztunnel["spec"]["nodeName"])

    error = refusal(
        proxies.create,
        ztunnel_csr(proxies.spiffe_id("istio-system", "ztunnel")),
        proxies.ztunnel_token(ztunnel),
        ImpersonatedIdentity=proxies.spiffe_id(*CART),
    )

    assert error.code() is grpc.StatusCode.PERMISSION_DENIED


def denied(proxies: Proxies, token: str, identity: str, why: str) -> None:
    """The identity is refused; the client hears nothing of why, and the log says it."""
    error = refusal(proxies.create, ztunnel_csr(identity), token, ImpersonatedIdentity=identity)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED, error.details()
    assert error.details() == "The caller may not ask for this identity."
    line = proxies.audit_of(error)
    assert line["reason"] == "IMPERSONATION_DENIED"
    assert why in line["message"]
    assert line["actor"].startswith("system:serviceaccount:")


def test_a_pod_of_another_node_is_refused(proxies: Proxies) -> None:
    ztunnel = proxies.ztunnel()
    proxies.add_pod("elsewhere", "cart", node=proxies.new_node())

    denied(
        proxies,
        proxies.ztunnel_token(ztunnel),
        proxies.spiffe_id("elsewhere", "cart"),
        "has no pod there",
    )


def test_a_pod_of_another_account_or_namespace_on_the_node_does_not_help(proxies: Proxies) -> None:
    ztunnel = proxies.ztunnel()
    node = ztunnel["spec"]["nodeName"]
    proxies.add_pod("shop", "other", node=node)
    proxies.add_pod("other", "cart", node=node)

    token = proxies.ztunnel_token(ztunnel)
    denied(proxies, token, proxies.spiffe_id(*CART), "has no pod there")


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_does_not_count(proxies: Proxies, phase: str) -> None:
    ztunnel = proxies.ztunnel()
    proxies.add_pod("shop", "cart", node=ztunnel["spec"]["nodeName"], phase=phase)

    token = proxies.ztunnel_token(ztunnel)
    denied(proxies, token, proxies.spiffe_id(*CART), "has no pod there")


def test_an_account_that_is_not_trusted_is_refused(proxies: Proxies) -> None:
    pod = proxies.add_pod("shop", "sneaky", node=proxies.new_node())
    proxies.add_pod("shop", "cart", node=pod["spec"]["nodeName"])

    denied(proxies, proxies.ztunnel_token(pod), proxies.spiffe_id(*CART), "no node account")


def test_a_namesake_of_ztunnel_in_another_namespace_is_refused(proxies: Proxies) -> None:
    pod = proxies.add_pod("shop", "ztunnel", node=proxies.new_node())
    proxies.add_pod("shop", "cart", node=pod["spec"]["nodeName"])

    denied(proxies, proxies.ztunnel_token(pod), proxies.spiffe_id(*CART), "no node account")


def test_a_ztunnel_whose_pod_is_gone_is_refused(proxies: Proxies) -> None:
    ztunnel = proxies.ztunnel()
    proxies.add_pod("shop", "cart", node=ztunnel["spec"]["nodeName"])
    proxies.api.pods.remove(ztunnel)

    token = proxies.ztunnel_token(ztunnel)
    denied(proxies, token, proxies.spiffe_id(*CART), "not there any more")


def test_a_ztunnel_whose_pod_was_replaced_by_a_namesake_is_refused(proxies: Proxies) -> None:
    old = proxies.ztunnel()
    proxies.add_pod("shop", "cart", node=old["spec"]["nodeName"])
    proxies.api.pods.remove(old)
    proxies.ztunnel(node=old["spec"]["nodeName"], name=old["metadata"]["name"])

    token = proxies.ztunnel_token(old)
    denied(proxies, token, proxies.spiffe_id(*CART), "not there any more")


def test_a_token_for_another_node_than_its_pods_is_refused(proxies: Proxies) -> None:
    ztunnel = proxies.ztunnel()
    other = proxies.new_node()
    proxies.add_pod("shop", "cart", node=other)

    token = proxies.ztunnel_token(ztunnel, node=other)
    denied(proxies, token, proxies.spiffe_id(*CART), "another node")


def test_a_token_bound_to_no_pod_is_refused(proxies: Proxies) -> None:
    ztunnel = proxies.ztunnel()
    node = ztunnel["spec"]["nodeName"]
    proxies.add_pod("shop", "cart", node=node)

    token = proxies.token("istio-system", "ztunnel", pod=None, node=node)
    denied(proxies, token, proxies.spiffe_id(*CART), "bound to no pod")


@pytest.mark.parametrize(
    ("identity", "code"),
    [
        ("spiffe://mesh.example/ns/shop/sa/cart\n", grpc.StatusCode.INVALID_ARGUMENT),
        ("spiffe://mesh.example/ns/shop/sa/", grpc.StatusCode.INVALID_ARGUMENT),
        ("cart.shop", grpc.StatusCode.INVALID_ARGUMENT),
        ("SPIFFE://mesh.example/ns/shop/sa/cart", grpc.StatusCode.INVALID_ARGUMENT),
        ("spiffe://mesh.example/ns/shop/sa/cart,spec.nodeName=x", grpc.StatusCode.INVALID_ARGUMENT),
        ("spiffe://other.example/ns/shop/sa/cart", grpc.StatusCode.PERMISSION_DENIED),
        ("spiffe://mesh.example", grpc.StatusCode.PERMISSION_DENIED),
        ("spiffe://mesh.example/sa/cart/ns/shop", grpc.StatusCode.PERMISSION_DENIED),
        ("spiffe://mesh.example/ns/shop/sa/cart/more", grpc.StatusCode.PERMISSION_DENIED),
        ("spiffe://mesh.example/ns/SHOP/sa/cart", grpc.StatusCode.PERMISSION_DENIED),
        ("spiffe://mesh.example/ns/shop/sa/_", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_an_identity_that_is_none_is_refused_before_anybody_is_asked(
    proxies: Proxies, identity: str, code: grpc.StatusCode
) -> None:
    ztunnel = proxies.ztunnel()
    proxies.add_pod("shop", "cart", node=ztunnel["spec"]["nodeName"])
    asked = proxies.api.count(proxies.api.pods_path("istio-system"))

    error = refusal(
        proxies.create,
        ztunnel_csr(proxies.spiffe_id(*CART)),
        proxies.ztunnel_token(ztunnel),
        ImpersonatedIdentity=identity,
    )

    assert error.code() is code
    assert proxies.api.count(proxies.api.pods_path("istio-system")) == asked
