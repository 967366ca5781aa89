"""Keys, usages and CSRs by role: the caller's wishes against what the role grants."""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from meshmint_server.errors import InvalidRequest, PolicyViolated
from meshmint_server.policy import (
    CertificateRequest,
    Decision,
    KeyAlgorithm,
    Names,
    Role,
    decide,
    parse_csr,
)
from meshmint_server.policy.usages import KEY_USAGES_OF
from support.made_csrs import key, make_pem, san, spiffe
from support.policy import BOUNDS, NOW, make_caller, make_role, violations_of

OWN = "spiffe://example.org/ns/shop/sa/cart"


def _issue(role: Role, algorithm: KeyAlgorithm | None = None) -> Decision:
    request = CertificateRequest(names=Names(dns_names=("localhost",)), key_algorithm=algorithm)
    return decide(role, make_caller(), request, now=NOW, bounds=BOUNDS)


def _sign(role: Role, pem: str, names: Names | None = None) -> Decision:
    request = CertificateRequest(names=names or Names(), csr=parse_csr(pem))
    return decide(role, make_caller(), request, now=NOW, bounds=BOUNDS)


def _refused(role: Role, pem: str, names: Names | None = None) -> dict[str, str]:
    with pytest.raises(PolicyViolated) as caught:
        _sign(role, pem, names)
    return violations_of(caught.value)


def _open_role(**fields: object) -> Role:
    return make_role(**{"require_cn": False, "allow_any_name": True, "key_type": "any", **fields})


# Issue


@pytest.mark.parametrize(
    ("fields", "algorithm"),
    [
        ({"key_type": "rsa"}, KeyAlgorithm.RSA_2048),
        ({"key_type": "rsa", "key_bits": 4096}, KeyAlgorithm.RSA_4096),
        ({"key_type": "ec"}, KeyAlgorithm.EC_P256),
        ({"key_type": "ec", "key_bits": 521}, KeyAlgorithm.EC_P521),
        ({"key_type": "ed25519"}, KeyAlgorithm.ED25519),
    ],
)
def test_role_decides_the_kind_of_key(fields: dict[str, object], algorithm: KeyAlgorithm) -> None:
    role = _open_role(**fields)
    assert _issue(role).key is algorithm
    assert _issue(role, algorithm).key is algorithm
    other = KeyAlgorithm.EC_P384
    with pytest.raises(PolicyViolated) as caught:
        _issue(role, other)
    assert set(violations_of(caught.value)) == {"key_algorithm"}


def test_role_for_any_key_needs_the_caller_to_choose() -> None:
    role = _open_role()
    with pytest.raises(InvalidRequest) as caught:
        _issue(role)
    assert "set key_algorithm" in violations_of(caught.value)["key_algorithm"]
    for algorithm in KeyAlgorithm:
        assert _issue(role, algorithm).key is algorithm


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_usages_that_a_key_cannot_have_are_left_out(algorithm: KeyAlgorithm) -> None:
    decision = _issue(_open_role(), algorithm)
    usage = decision.grant.key_usage
    assert usage is not None
    assert usage.digital_signature
    assert usage.key_encipherment is (algorithm.value[0] == "rsa")
    assert usage.key_agreement is (algorithm.value[0] == "ec")
    assert not usage.key_cert_sign
    assert decision.warnings == ()  # only defaults were left out


def test_usages_spelled_out_in_the_role_are_left_out_with_a_warning() -> None:
    role = _open_role(key_usage=["DigitalSignature", "KeyEncipherment"])
    assert "KeyEncipherment" in _issue(role, KeyAlgorithm.EC_P256).warnings[0]
    assert _issue(role, KeyAlgorithm.RSA_2048).warnings == ()


def test_key_that_can_have_none_of_the_roles_usages_is_refused() -> None:
    role = _open_role(key_usage=["KeyEncipherment"])
    with pytest.raises(PolicyViolated):
        _issue(role, KeyAlgorithm.ED25519)
    assert _issue(role, KeyAlgorithm.RSA_2048).grant.key_usage is not None


def test_empty_key_usage_leaves_the_extension_out() -> None:
    assert _issue(_open_role(key_usage=[]), KeyAlgorithm.EC_P256).grant.key_usage is None


def test_extended_key_usages_of_flags_names_and_oids_are_joined() -> None:
    role = _open_role(
        client_flag=False, code_signing_flag=True, email_protection_flag=True,
        ext_key_usage="TimeStamping,serverauth", ext_key_usage_oids="1.2.3.4",
    )  # fmt: skip
    assert _issue(role, KeyAlgorithm.EC_P256).grant.ext_key_usages == (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CODE_SIGNING,
        ExtendedKeyUsageOID.EMAIL_PROTECTION,
        ExtendedKeyUsageOID.TIME_STAMPING,
        x509.ObjectIdentifier("1.2.3.4"),
    )


def test_rest_of_the_role_reaches_the_decision() -> None:
    role = _open_role(
        issuer_ref="next", signature_bits=384, use_pss=True, no_store=True,
        basic_constraints_valid_for_non_ca=True, policy_identifiers="1.2.3",
    )  # fmt: skip
    decision = _issue(role, KeyAlgorithm.EC_P256)
    assert decision.grant.issuer_ref == "next"
    assert decision.grant.signature_bits == 384
    assert decision.grant.use_pss
    assert not decision.grant.is_recorded
    assert decision.grant.basic_constraints
    assert [policy.policy_identifier.dotted_string for policy in decision.grant.policies] == [
        "1.2.3"
    ]


# Sign: the key


@pytest.mark.parametrize(
    ("fields", "kind", "is_granted"),
    [
        ({"key_type": "ec"}, "ec-256", True),
        ({"key_type": "ec"}, "ec-384", True),
        ({"key_type": "ec", "key_bits": 384}, "ec-256", False),
        ({"key_type": "ec"}, "rsa-2048", False),
        ({"key_type": "rsa"}, "rsa-2048", True),
        ({"key_type": "rsa", "key_bits": 3072}, "rsa-2048", False),
        ({"key_type": "rsa", "key_bits": 3072}, "rsa-3072", True),
        ({"key_type": "rsa"}, "ed25519", False),
        ({"key_type": "ed25519"}, "ed25519", True),
        ({"key_type": "ed25519"}, "ec-256", False),
        ({"key_type": "any"}, "ec-256", True),
        ({"key_type": "any"}, "rsa-1024", False),
        ({"key_type": "rsa"}, "rsa-1024", False),
        ({"key_type": "any"}, "rsa-2048", True),
        ({"key_type": "any"}, "ed25519", True),
    ],
)
def test_csr_key_by_kind_and_least_size(
    fields: dict[str, object], kind: str, is_granted: bool
) -> None:
    role = make_role(**{"spiffe": "own", **fields})
    pem = make_pem(private_key=key(kind))
    if is_granted:
        assert _sign(role, pem).key == key(kind).public_key()
    else:
        assert set(_refused(role, pem)) == {"csr"}


def test_key_algorithm_beside_a_csr_is_malformed() -> None:
    request = CertificateRequest(
        key_algorithm=KeyAlgorithm.EC_P256, csr=parse_csr(make_pem(spiffe(OWN)))
    )
    with pytest.raises(InvalidRequest):
        decide(make_role(spiffe="own"), make_caller(), request, now=NOW, bounds=BOUNDS)


# Sign: extensions


def _usage(**asked: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: asked.get(name, False) for name in names})


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.BasicConstraints(ca=True, path_length=0),
        _usage(key_cert_sign=True),
        _usage(digital_signature=True, crl_sign=True),
        _usage(digital_signature=True, data_encipherment=True),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
        x509.TLSFeature([x509.TLSFeatureType.status_request]),
        x509.NameConstraints([x509.DNSName("a.test")], None),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    ],
)
def test_csr_that_asks_for_more_than_the_role_is_refused(extension: x509.ExtensionType) -> None:
    assert set(_refused(make_role(spiffe="own"), make_pem(extension))) == {"csr"}


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=False, path_length=None),
        _usage(digital_signature=True),
        _usage(digital_signature=True, key_encipherment=True),  # Istio's agents ask so
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        x509.SubjectKeyIdentifier(b"\x01" * 20),
    ],
)
def test_csr_that_asks_for_no_more_than_the_role_is_granted(
    extension: x509.ExtensionType,
) -> None:
    decision = _sign(make_role(spiffe="own"), make_pem(extension))
    assert str(decision.grant.spiffe_id) == OWN
    assert decision.grant.key_usage is not None
    assert not decision.grant.key_usage.key_encipherment


# Sign: names


def test_names_come_from_the_csr_by_default() -> None:
    pem = make_pem(
        san(x509.DNSName("A.test"), x509.IPAddress(ipaddress.ip_address("10.0.0.1"))),
        subject=[(NameOID.COMMON_NAME, "b.test")],
    )
    decision = _sign(_open_role(require_cn=True), pem)
    assert [str(name.value) for name in decision.grant.sans] == ["b.test", "a.test", "10.0.0.1"]
    assert decision.grant.subject.rfc4514_string() == "CN=b.test"


@pytest.mark.parametrize(
    "names",
    [Names(common_name="b.test"), Names(dns_names=("a.test",)), Names(uris=(OWN,)),
     Names(ip_addresses=("10.0.0.1",)), Names(email_addresses=("a@b.test",))],
)  # fmt: skip
def test_names_beside_a_csr_that_decides_them_are_malformed(names: Names) -> None:
    pem = make_pem(san(x509.DNSName("a.test")), subject=[(NameOID.COMMON_NAME, "b.test")])
    with pytest.raises(InvalidRequest):
        _sign(_open_role(), pem, names)


def test_names_come_from_the_request_if_the_role_says_so() -> None:
    role = _open_role(use_csr_common_name=False, use_csr_sans=False)
    names = Names(common_name="b.test", dns_names=("a.test",))
    expected = ["b.test", "a.test"]
    for pem in (
        make_pem(),
        make_pem(san(x509.DNSName("A.test"))),
        make_pem(san(x509.DNSName("b.test")), subject=[(NameOID.COMMON_NAME, "B.test")]),
    ):
        decision = _sign(role, pem, names)
        assert [name.value for name in decision.grant.sans] == expected


def test_names_of_the_csr_that_would_be_dropped_are_refused() -> None:
    role = _open_role(use_csr_common_name=False, use_csr_sans=False)
    pem = make_pem(
        san(x509.DNSName("a.test"), x509.DNSName("c.test")),
        subject=[(NameOID.COMMON_NAME, "d.test")],
    )
    assert set(_refused(role, pem, Names(dns_names=("a.test",)))) == {
        "csr.dns_names[1]",
        "csr.common_name",
    }


def test_own_spiffe_id_in_the_csr_is_no_extra_name() -> None:
    role = make_role(spiffe="own", use_csr_sans=False)
    assert str(_sign(role, make_pem(spiffe(OWN))).grant.spiffe_id) == OWN
    _refused(role, make_pem(spiffe("spiffe://example.org/other")))


def test_svid_role_fills_in_the_spiffe_id_of_a_csr_without_one() -> None:
    assert str(_sign(make_role(spiffe="own"), make_pem()).grant.spiffe_id) == OWN


@pytest.mark.parametrize(
    "ids",
    [
        (OWN, "spiffe://example.org/other"),
        ("spiffe://example.org/other",),
        ("spiffe://example.com/ns/shop/sa/cart",),
        (OWN, "https://a.test/"),
    ],
)
def test_csr_with_another_spiffe_id_is_refused(ids: tuple[str, ...]) -> None:
    assert any(
        field.startswith("csr.uris")
        for field in _refused(make_role(spiffe="own"), make_pem(spiffe(*ids)))
    )


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://example.org/ns/../x", "spiffe://example.org/%2e%2e/x", OWN + "?q=1",
        "spiffe://example.org:443/x", "spiffe://EXAMPLE.org/x", OWN + "/",
    ],
)  # fmt: skip
def test_csr_with_a_malformed_spiffe_id_is_malformed(uri: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _sign(make_role(spiffe="own"), make_pem(spiffe(uri)))
    assert set(violations_of(caught.value)) == {"csr.uris[0]"}


def test_subject_that_the_role_decides_is_left_out_with_a_warning() -> None:
    pem = make_pem(spiffe(OWN), subject=[(NameOID.ORGANIZATION_NAME, "Evil")])
    decision = _sign(make_role(spiffe="own", organization="Example"), pem)
    assert decision.grant.subject.rfc4514_string() == "O=Example"
    assert "O was left out" in decision.warnings[0].replace("CSR's, ", "")


def test_serial_number_and_user_id_of_the_csr_count() -> None:
    role = _open_role(allowed_serial_numbers=["7"], allowed_user_ids=["alice"])
    pem = make_pem(subject=[(NameOID.SERIAL_NUMBER, "7"), (NameOID.USER_ID, "alice")])
    assert _sign(role, pem).grant.subject.rfc4514_string() == "UID=alice,2.5.4.5=7"
    assert (
        _sign(role, pem, Names(subject_serial_number="7")).grant.subject
        == _sign(role, pem).grant.subject
    )
    with pytest.raises(InvalidRequest):
        _sign(role, pem, Names(subject_serial_number="8"))
    assert set(_refused(_open_role(), pem)) == {"csr.subject_serial_number", "csr.user_ids[0]"}


def test_too_many_names_in_a_csr_are_malformed() -> None:
    pem = make_pem(san(*(x509.DNSName(f"n{i}.test") for i in range(1001))))
    with pytest.raises(InvalidRequest, match="at most 1000"):
        _sign(_open_role(), pem)


def test_no_key_type_may_certify() -> None:
    assert all(not usages & {"key_cert_sign", "crl_sign"} for usages in KEY_USAGES_OF.values())
