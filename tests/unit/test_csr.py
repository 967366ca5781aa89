"""CSRs: what is read of a sound one, and that nothing unsound gets through or escapes."""

from __future__ import annotations

import base64
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from meshmint_server.errors import InvalidRequest
from meshmint_server.policy import OtherName, parse_csr, parse_csr_der
from support.made_csrs import (
    extension,
    extension_request,
    handmade_csr,
    key,
    make_csr,
    make_pem,
    oid,
    san,
    sequence,
    set_of,
    spiffe,
    tlv,
    to_pem,
)

SAN = "2.5.29.17"


def _refusal(csr: str | bytes) -> str:
    with pytest.raises(InvalidRequest) as caught:
        _ = parse_csr(csr) if isinstance(csr, str) else parse_csr_der(csr)
    (violation,) = caught.value.violations
    assert violation.field == "csr"
    return violation.description


def _der(csr: x509.CertificateSigningRequest) -> bytes:
    return csr.public_bytes(serialization.Encoding.DER)


# What is read


def test_every_name_of_a_sound_csr_is_read() -> None:
    pem = make_pem(
        san(
            x509.DNSName("A.test"),
            x509.IPAddress(ipaddress.ip_address("2001:db8::1")),
            x509.UniformResourceIdentifier("spiffe://example.org/x"),
            x509.RFC822Name("me@example.com"),
            x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x0c\x02hi"),
        ),
        subject=[
            (NameOID.COUNTRY_NAME, "DE"),
            (NameOID.COMMON_NAME, "A.test"),
            (NameOID.SERIAL_NUMBER, "7"),
            (NameOID.USER_ID, "alice"),
            (NameOID.EMAIL_ADDRESS, "me@example.com"),
        ],
    )
    contents = parse_csr(pem)
    names = contents.names
    assert names.common_name == "A.test"
    assert names.dns_names == ("A.test",)
    assert names.ip_addresses == ("2001:db8::1",)
    assert names.uris == ("spiffe://example.org/x",)
    assert names.email_addresses == ("me@example.com",)
    assert names.other_names == (OtherName("1.2.3", "hi"),)
    assert names.subject_serial_number == "7"
    assert names.user_ids == ("alice",)
    assert contents.ignored_subject == ("C", "1.2.840.113549.1.9.1")
    assert not contents.wants_ca
    assert contents.key_usage is None
    assert contents.ext_key_usages is None
    assert contents.unknown_extensions == ()


def test_usages_and_extensions_asked_for_are_read() -> None:
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=True, key_cert_sign=True, crl_sign=False,
        encipher_only=True, decipher_only=False,
    )  # fmt: skip
    csr = make_csr(
        usage,
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
        x509.BasicConstraints(ca=True, path_length=None),
        x509.SubjectKeyIdentifier(b"x" * 20),
        x509.TLSFeature([x509.TLSFeatureType.status_request]),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"),
    )
    contents = parse_csr_der(_der(csr))
    assert contents.key_usage == {
        "digital_signature", "key_agreement", "key_cert_sign", "encipher_only",
    }  # fmt: skip
    assert contents.ext_key_usages == {ExtendedKeyUsageOID.CLIENT_AUTH}
    assert contents.wants_ca
    assert contents.unknown_extensions == ("1.3.6.1.5.5.7.1.24", "1.2.3.4")


@pytest.mark.parametrize("kind", ["ec-256", "ec-384", "ec-521", "rsa-2048", "rsa-3072", "ed25519"])
def test_supported_keys_are_accepted(kind: str) -> None:
    contents = parse_csr(make_pem(private_key=key(kind)))
    assert contents.public_key == key(kind).public_key()


def test_pem_variants_of_openssl_and_windows_are_read() -> None:
    pem = make_pem(spiffe("spiffe://example.org/x"))
    expected = parse_csr(pem).names
    for variant in (
        pem.replace("\n", "\r\n"),
        "\n\n" + pem + "\n",
        pem.rstrip("\n"),
        pem.replace("CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"),
    ):
        assert parse_csr(variant).names == expected


def test_challenge_password_is_no_matter() -> None:
    attributes = [(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), b"secret")]
    assert parse_csr(make_pem(attributes=attributes)).names.common_name == ""


def test_subject_that_warns_in_the_parser_is_read_in_peace() -> None:
    rdn = set_of(sequence(oid("2.5.4.6"), tlv(0x13, b"GERMANY")))
    assert parse_csr_der(handmade_csr(subject=rdn)).ignored_subject == ("C",)


def test_csr_made_by_openssl_is_read(tmp_path: Path) -> None:
    import subprocess

    pem = tmp_path / "csr.pem"
    subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-keyout", str(tmp_path / "key.pem"), "-out", str(pem),
         "-subj", "/O=Example/CN=a.test",
         "-addext", "subjectAltName=DNS:a.test,URI:spiffe://example.org/x,IP:10.0.0.1,"
         "otherName:1.2.3;UTF8:hi", "-addext", "keyUsage=digitalSignature"],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    contents = parse_csr(pem.read_text())
    assert contents.names.dns_names == ("a.test",)
    assert contents.names.uris == ("spiffe://example.org/x",)
    assert contents.names.ip_addresses == ("10.0.0.1",)
    assert contents.names.other_names == (OtherName("1.2.3", "hi"),)
    assert contents.key_usage == {"digital_signature"}
    assert contents.ignored_subject == ("O",)


# PEM and DER


@pytest.mark.parametrize(
    ("pem", "part"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("hello", "not one PEM block"),
        ("-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n", "empty"),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAA\n-----END CERTIFICATE REQUEST-----\n", "base64"),
        ("-----BEGIN CERTIFICATE REQUEST-----\n!!!\n-----END CERTIFICATE REQUEST-----\n", "PEM"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
            "PKCS#10",
        ),
        ("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM"),
        ("x" * 200_000, "64 KiB"),
    ],
)
def test_text_that_is_no_pem_csr_is_refused(pem: str, part: str) -> None:
    assert part in _refusal(pem)


def test_pem_of_another_kind_or_with_company_is_refused() -> None:
    pem = make_pem()
    assert "PEM" in _refusal(pem.replace("CERTIFICATE REQUEST", "CERTIFICATE"))
    assert "one PEM block" in _refusal(pem + pem)
    assert "PEM" in _refusal(pem + "trailing")
    assert "PEM" in _refusal("leading\n" + pem)
    assert "PEM" in _refusal(pem.replace("-----END CERTIFICATE REQUEST-----", ""))
    for tail in ("=", "====", "A=AA"):
        assert "base64" in _refusal(pem.replace("\n-----END", f"{tail}\n-----END"))


def test_der_that_is_cut_or_padded_is_refused() -> None:
    der = _der(make_csr(spiffe("spiffe://example.org/x")))
    assert "empty" in _refusal(b"")
    for cut in (1, 10, len(der) // 2, len(der) - 1):
        _refusal(der[:cut])
    _refusal(der + b"\0")
    _refusal(der + der)
    assert "64 KiB" in _refusal(b"\x30" * (64 * 1024 + 1))
    lines = base64.encodebytes(der[:-5]).decode()
    _refusal(f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n")


# Signature and key


def test_broken_self_signature_is_refused() -> None:
    der = bytearray(_der(make_csr()))
    der[-1] ^= 1
    _refusal(bytes(der))
    sound = _der(make_csr(spiffe("spiffe://example.org/x")))
    assert "self-signature" in _refusal(sound.replace(b"example.org/x", b"example.org/y"))


def test_csr_for_somebody_elses_key_is_refused() -> None:
    other = (
        key("ec-384")
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    assert "self-signature" in _refusal(handmade_csr(spki=other))


def test_csr_signed_with_sha1_is_refused() -> None:
    assert "SHA-256" in _refusal(handmade_csr(signature_hash=hashes.SHA1()))  # noqa: S303


@pytest.mark.parametrize("curve", [ec.SECP224R1, ec.SECP256K1])
def test_key_on_another_curve_is_refused(curve: type[ec.EllipticCurve]) -> None:
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = to_pem(csr.sign(ec.generate_private_key(curve()), hashes.SHA256()))
    assert "P-256" in _refusal(pem)


@pytest.mark.parametrize("curve", ["1.3.132.0.26", "1.2.840.10045.3.1.99"])
def test_key_on_an_unknown_curve_is_refused(curve: str) -> None:
    spki = sequence(
        sequence(oid("1.2.840.10045.2.1"), oid(curve)), tlv(0x03, b"\0\x04" + b"\x01" * 64)
    )
    assert "unknown kind or curve" in _refusal(handmade_csr(spki=spki))


def test_point_that_is_not_on_its_curve_is_refused() -> None:
    spki = sequence(
        sequence(oid("1.2.840.10045.2.1"), oid("1.2.840.10045.3.1.7")),
        tlv(0x03, b"\0\x04" + b"\x01" * 64),
    )
    assert "public key" in _refusal(handmade_csr(spki=spki))


def test_keys_of_other_kinds_are_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    dsa_key = dsa.generate_private_key(2048)
    assert "RSA, EC or Ed25519" in _refusal(to_pem(builder.sign(dsa_key, hashes.SHA256())))
    ed448_key = ed448.Ed448PrivateKey.generate()
    assert "RSA, EC or Ed25519" in _refusal(to_pem(builder.sign(ed448_key, None)))


def test_rsa_keys_with_a_weak_exponent_are_refused() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    cubic = rsa.generate_private_key(3, 2048)
    assert "exponent" in _refusal(to_pem(builder.sign(cubic, hashes.SHA256())))


def _rsa_spki(modulus: int, exponent: int) -> bytes:
    def integer(number: int) -> bytes:
        return tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, "big"))

    return sequence(
        sequence(oid("1.2.840.113549.1.1.1"), b"\x05\x00"),
        tlv(0x03, b"\0" + sequence(integer(modulus), integer(exponent))),
    )


@pytest.mark.parametrize(
    ("modulus", "exponent"),
    [
        ((1 << 8200) + 1, 65_537),
        ((1 << 2047) + 1, 65_536),
        ((1 << 2047) + 1, (1 << 256) + 1),
        (1 << 2047, 65_537),
        (0, 65_537),
        (1, 1),
    ],
)
def test_absurd_rsa_keys_are_refused_before_they_cost_anything(modulus: int, exponent: int) -> None:
    assert "self-signature" not in _refusal(handmade_csr(spki=_rsa_spki(modulus, exponent)))


# Contents


@pytest.mark.parametrize(
    "value",
    [
        sequence(tlv(0x82, b"a.test\x00.evil.net")),
        sequence(tlv(0x82, b"a.test\n")),
        sequence(tlv(0x82, "b\u00fccher.test".encode())),
        sequence(tlv(0x82, b"\xff\xfe")),
        sequence(tlv(0x82, b"")),
        sequence(tlv(0x86, b"spiffe://example.org/x\x00")),
        sequence(tlv(0x81, b"a@b.c\r")),
        sequence(tlv(0x87, b"\x0a\x00\x00")),
        sequence(tlv(0x87, b"\x0a\x00\x00\x00\xff\x00\x00\x00")),
        sequence(tlv(0x88, b"\x2a\x03")),
        sequence(tlv(0xA4, sequence(set_of(sequence(oid("2.5.4.3"), tlv(0x0C, b"x")))))),
        sequence(tlv(0xA3, b"")),
        sequence(tlv(0xA5, sequence(tlv(0xA1, tlv(0x0C, b"x"))))),
        sequence(tlv(0xA0, oid("1.2.3"), tlv(0xA0, tlv(0x16, b"ia5")))),
        sequence(tlv(0xA0, oid("1.2.3"), tlv(0xA0, tlv(0x0C, b"\xff\xff")))),
        sequence(tlv(0xA0, oid("1.2.3"), tlv(0xA0, b"\x0c\x81\x02hi"))),
        sequence(tlv(0xA0, oid("1.2.3"), tlv(0xA0, tlv(0x0C, b"hi"), tlv(0x0C, b"ho")))),
        sequence(tlv(0x8F, b"x")),
        b"",
        b"\x05\x00",
        sequence(tlv(0x82, b"a.test")) + b"\x00",
    ],
)
def test_unreadable_sans_are_refused(value: bytes) -> None:
    _refusal(handmade_csr(extension_request(extension(SAN, value))))


def test_extensions_asked_for_twice_are_refused() -> None:
    one = extension(SAN, sequence(tlv(0x82, b"a.test")))
    other = extension(SAN, sequence(tlv(0x82, b"b.test")))
    assert parse_csr_der(handmade_csr(extension_request(one))).names.dns_names == ("a.test",)
    _refusal(handmade_csr(extension_request(one, other)))
    assert "more than one" in _refusal(
        handmade_csr(extension_request(one), extension_request(other))
    )
    microsoft = sequence(oid("1.3.6.1.4.1.311.2.1.14"), set_of(sequence(other)))
    assert "more than one" in _refusal(handmade_csr(extension_request(one), microsoft))
    two_values = sequence(oid("1.2.840.113549.1.9.14"), set_of(sequence(one), sequence(other)))
    _refusal(handmade_csr(two_values))


@pytest.mark.parametrize(
    "rdns",
    [
        set_of(sequence(oid("2.5.4.3"), tlv(0x0C, b"a"))) * 2,
        set_of(sequence(oid("2.5.4.5"), tlv(0x13, b"1"))) * 2,
        set_of(sequence(oid("2.5.4.3"), tlv(0x0C, b""))),
        set_of(sequence(oid("2.5.4.3"), tlv(0x0C, b"a\x00b"))),
        set_of(sequence(oid("2.5.4.3"), tlv(0x0C, b"\xff"))),
        set_of(sequence(oid("2.5.4.3"), tlv(0x03, b"\x00a"))),
        set_of(sequence(oid("2.5.4.3"), tlv(0x1E, b"\x00"))),
        set_of(sequence(oid("2.5.4.3"), tlv(0x0D, b"a"))),  # a type that is no string
    ],
)
def test_unclear_subjects_are_refused(rdns: bytes) -> None:
    _refusal(handmade_csr(subject=rdns))
