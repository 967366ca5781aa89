"""Issue and Sign end to end: right certificates, in the eyes of others too."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from meshmint.v1 import certificate_service_pb2 as pb
from support.csr import make_csr, make_key, pem
from support.programs import program
from support.service import Service, ServiceFactory

ALGORITHMS = {
    pb.KEY_ALGORITHM_EC_P256: ("ec", 256),
    pb.KEY_ALGORITHM_EC_P384: ("ec", 384),
    pb.KEY_ALGORITHM_EC_P521: ("ec", 521),
    pb.KEY_ALGORITHM_RSA_2048: ("rsa", 2048),
    pb.KEY_ALGORITHM_RSA_3072: ("rsa", 3072),
    pb.KEY_ALGORITHM_RSA_4096: ("rsa", 4096),
    pb.KEY_ALGORITHM_ED25519: ("ed25519", None),
}

# Findings of pkilint that are not faults, each with its reason.
PKILINT_EXCEPTIONS = {
    "pkix.invalid_uri_syntax": "its URI check refuses the spiffe scheme",
}


def described(key: object) -> tuple[str, int | None]:
    if isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        return "ec", key.curve.key_size
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        return "rsa", key.key_size
    assert isinstance(key, ed25519.Ed25519PublicKey | ed25519.Ed25519PrivateKey)
    return "ed25519", None


def assert_others_agree(
    tmp_path: Path, certificate: str, chain: list[str], roots: list[str]
) -> None:
    """openssl, GnuTLS and pkilint all find the certificate right."""
    leaf, untrusted, trusted = (tmp_path / n for n in ("leaf.pem", "chain.pem", "roots.pem"))
    leaf.write_text(certificate)
    untrusted.write_text("".join(chain))
    trusted.write_text("".join(roots))
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslserver",
         "-CAfile", trusted, "-untrusted", untrusted, leaf],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stdout + verified.stderr
    whole = tmp_path / "whole.pem"
    whole.write_text("".join([certificate, *chain]))
    gnutls = subprocess.run(
        [program("certtool"), "--verify", "--load-ca-certificate", trusted, "--infile", whole],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert gnutls.returncode == 0, gnutls.stdout + gnutls.stderr
    assert "Chain verification output: Verified" in gnutls.stdout
    for path in (leaf, untrusted):
        linted = subprocess.run(
            [program("lint_pkix_cert"), "lint", "-s", "ERROR", "-f", "JSON", path],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        findings = [
            finding
            for result in json.loads(linted.stdout)["results"]
            for finding in result["finding_descriptions"]
            if finding["code"] not in PKILINT_EXCEPTIONS
        ]
        assert findings == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_issue_makes_a_key_pair_of_each_kind_and_its_certificate(
    service: Service, tmp_path: Path, algorithm: pb.KeyAlgorithm.ValueType
) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "any", "ttl": "1h"})

    response = service.issue(pb.IssueRequest(role=role, key_algorithm=algorithm))

    certificate = x509.load_pem_x509_certificate(response.certificate.encode())
    key = serialization.load_pem_private_key(response.private_key.encode(), None)
    assert described(key) == ALGORITHMS[algorithm] == described(certificate.public_key())
    assert spki(key.public_key()) == spki(certificate.public_key())
    assert_others_agree(
        tmp_path, response.certificate, list(response.chain), list(response.trust_bundle)
    )


@pytest.mark.parametrize(
    "kind", ["ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519"]
)
def test_sign_takes_a_csr_of_each_kind(service: Service, tmp_path: Path, kind: str) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "any"})
    key = make_key(kind)

    response = service.sign(
        pb.SignRequest(role=role, csr_pem=pem(make_csr(key)), validity=ttl(3600))
    )

    certificate = x509.load_pem_x509_certificate(response.certificate.encode())
    assert spki(certificate.public_key()) == spki(key.public_key())
    assert_others_agree(
        tmp_path, response.certificate, list(response.chain), list(response.trust_bundle)
    )


def spki(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def ttl(seconds: int) -> pb.Validity:
    validity = pb.Validity()
    validity.ttl.FromSeconds(seconds)
    return validity


def test_x509_svid_follows_the_standard(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    before = datetime.now(UTC).replace(microsecond=0)

    response = service.issue(pb.IssueRequest(role=role, validity=ttl(600)))

    certificate = x509.load_pem_x509_certificate(response.certificate.encode())
    issuer = x509.load_pem_x509_certificate(response.chain[0].encode())
    assert response.spiffe_id == f"spiffe://{service.trust_domain}/ns/shop/sa/cart"
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(san.value) == [x509.UniformResourceIdentifier(response.spiffe_id)]
    assert san.critical
    assert not certificate.subject.rdns
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_encipherment  # an EC key cannot
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    extended = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(extended) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert certificate.extensions.get_extension_for_class(
        x509.SubjectKeyIdentifier
    ).value == x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
    authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert (
        authority.key_identifier
        == issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )
    assert before - timedelta(seconds=31) <= certificate.not_valid_before_utc <= before
    assert (
        timedelta(seconds=600) <= certificate.not_valid_after_utc - before <= timedelta(seconds=603)
    )
    assert response.serial_number == f"{certificate.serial_number:x}"
    assert response.not_after.ToDatetime(tzinfo=UTC) == certificate.not_valid_after_utc


def test_role_written_for_vault_does_what_it_says(service: Service, tmp_path: Path) -> None:
    role = service.put_role(
        {
            "allowed_domains": ["example.com", "internal.example.com"],
            "allow_subdomains": True,
            "max_ttl": "720h",
            "key_type": "ec",
            "key_bits": 256,
            "require_cn": False,
            "allowed_uri_sans": ["spiffe://example.com/*"],
        }
    )

    response = service.issue(
        pb.IssueRequest(
            role=role,
            names=pb.CertificateNames(
                common_name="api.internal.example.com",
                dns_names=["web.example.com"],
                ip_addresses=["10.1.2.3"],
                uris=["spiffe://example.com/ns/shop/sa/cart"],
            ),
            validity=ttl(720 * 3600),
        )
    )

    certificate = x509.load_pem_x509_certificate(response.certificate.encode())
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert not san.critical
    assert set(san.value) == {
        x509.DNSName("api.internal.example.com"),
        x509.DNSName("web.example.com"),
        x509.IPAddress(ipaddress.ip_address("10.1.2.3")),
        x509.UniformResourceIdentifier("spiffe://example.com/ns/shop/sa/cart"),
    }
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == (
        "api.internal.example.com"
    )
    assert_others_agree(
        tmp_path, response.certificate, list(response.chain), list(response.trust_bundle)
    )


def test_serial_numbers_begin_with_the_time_and_end_in_120_random_bits(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    began = int(time.time())
    serials = [int(service.issue(pb.IssueRequest(role=role)).serial_number, 16) for _ in range(40)]
    # RFC 5280 section 4.1.2.2: positive, at most 20 octets.
    assert all(0 < serial < 2**159 for serial in serials)
    times = [serial >> 120 for serial in serials]
    assert times == sorted(times)
    assert began <= times[0] <= times[-1] <= time.time()
    endings = [serial % 2**120 for serial in serials]
    assert len(set(endings)) == len(endings)
    for bit in range(120):
        assert len({ending >> bit & 1 for ending in endings}) == 2, bit


def test_ttl_over_the_maximum_is_shortened_with_a_warning(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "ec", "max_ttl": "1h"})
    response = service.issue(pb.IssueRequest(role=role, validity=ttl(7200)))
    lifetime = response.not_after.ToDatetime(tzinfo=UTC) - datetime.now(UTC)
    assert lifetime <= timedelta(hours=1, seconds=1)
    assert any("longest lifetime is 1h" in warning for warning in response.warnings)


def test_role_may_be_left_out_when_only_one_fits(service: Service) -> None:
    name = service.put_role(
        {
            "spiffe": "own",
            "key_type": "ec",
            "callers": [{"namespace": "lonely", "service_account": "one"}],
        }
    )
    response = service.issue(
        pb.IssueRequest(), token=service.token(namespace="lonely", service_account="one")
    )
    assert response.role == name


def test_recorded_certificate_is_found_and_no_store_one_is_not(service: Service) -> None:
    kept = service.put_role({"spiffe": "own", "key_type": "ec"})
    unkept = service.put_role({"spiffe": "own", "key_type": "ec", "no_store": True})
    first = service.issue(pb.IssueRequest(role=kept))
    second = service.issue(pb.IssueRequest(role=unkept))

    record = service.get_record(first.serial_number)

    assert record.certificate == first.certificate
    assert (record.role, record.caller, record.spiffe_id) == (
        kept,
        "system:serviceaccount:shop:cart",
        first.spiffe_id,
    )
    assert list(record.names) == [f"URI:{first.spiffe_id}"]
    assert service.list_records(role=unkept) == []
    assert [r.serial_number for r in service.list_records(role=kept)] == [first.serial_number]
    assert second.certificate


def test_chain_is_given_without_a_credential(service: Service) -> None:
    response = service.stub.GetChain(pb.GetChainRequest(), timeout=10)
    chain = [x509.load_pem_x509_certificate(c.encode()) for c in response.chain]
    roots = [x509.load_pem_x509_certificate(c.encode()) for c in response.trust_bundle]
    assert response.trust_domain == service.trust_domain
    chain[-1].verify_directly_issued_by(roots[0])
    assert all(c.issuer != c.subject for c in chain)
    assert roots[0].issuer == roots[0].subject
    assert chain[0].extensions.get_extension_for_oid(ExtensionOID.KEY_USAGE).critical


def test_key_in_the_token_cannot_be_extracted(service: Service) -> None:
    listed = subprocess.run(
        [program("pkcs11-tool"), "--module", service.module, "--login",
         "--pin", "env:MESHMINT_TEST_PIN", "--list-objects", "--type", "privkey"],
        capture_output=True, text=True, check=True, env=service.token_environment,
    ).stdout  # fmt: skip
    assert "never extractable" in listed
    assert "sensitive, always sensitive" in listed
    usage = [line.split(":", 1)[1] for line in listed.splitlines() if "Usage" in line]
    assert usage
    assert all(line.strip() == "sign" for line in usage)


def test_lifetime_of_the_service_certificate_is_short_and_names_the_service(
    service: Service,
) -> None:
    shown = subprocess.run(
        ["openssl", "s_client", "-connect", service.address, "-CAfile", service.ca_file,
         "-verify_return_error", "-alpn", "h2"],
        input="", capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=20,
    ).stdout  # fmt: skip
    assert "Verify return code: 0 (ok)" in shown


@pytest.mark.parametrize(
    ("issuer_algorithm", "use_pss", "signature"),
    [
        ("ec-p384", False, "ecdsa-with-SHA384"),
        ("rsa-2048", False, "sha256WithRSAEncryption"),
        ("rsa-2048", True, "rsassaPss"),
        ("ed25519", False, "ED25519"),
    ],
)
def test_issuers_of_other_kinds_sign_right_too(
    service_factory: ServiceFactory,
    tmp_path: Path,
    issuer_algorithm: str,
    use_pss: bool,
    signature: str,
) -> None:
    with service_factory.start(issuer_algorithm=issuer_algorithm) as service:
        role = service.put_role({"spiffe": "own", "key_type": "ec", "use_pss": use_pss})
        response = service.issue(pb.IssueRequest(role=role, validity=ttl(600)))
    assert_others_agree(
        tmp_path, response.certificate, list(response.chain), list(response.trust_bundle)
    )
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-text"],
        input=response.certificate, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"Signature Algorithm: {signature}" in shown
