"""CSRs for tests: sound ones by cryptography's builder, broken ones built from DER by hand."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@cache
def key(kind: str) -> PrivateKey:
    """Returns one private key per kind: "ec-256", "rsa-2048", "ed25519" and so on."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    family, size = kind.split("-")
    if family == "rsa":
        return rsa.generate_private_key(65_537, int(size))
    curve = {"256": ec.SECP256R1, "384": ec.SECP384R1, "521": ec.SECP521R1}[size]
    return ec.generate_private_key(curve())


def make_csr(
    *extensions: x509.ExtensionType,
    subject: Iterable[tuple[x509.ObjectIdentifier, str]] = (),
    private_key: PrivateKey | None = None,
    attributes: Iterable[tuple[x509.ObjectIdentifier, bytes]] = (),
) -> x509.CertificateSigningRequest:
    """Makes a CSR with the extensions, signed by the key ("ec-256" unless told)."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(oid, value) for oid, value in subject])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    for oid, value in attributes:
        builder = builder.add_attribute(oid, value)
    private_key = private_key or key("ec-256")
    algorithm = None if isinstance(private_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(private_key, algorithm)


def make_pem(*extensions: x509.ExtensionType, **options: object) -> str:
    """Makes a CSR as PEM."""
    return to_pem(make_csr(*extensions, **options))  # type: ignore[arg-type]


def to_pem(csr: x509.CertificateSigningRequest) -> str:
    """Writes a CSR as PEM."""
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def san(*names: x509.GeneralName) -> x509.SubjectAlternativeName:
    """Makes a SAN extension."""
    return x509.SubjectAlternativeName(names)


def spiffe(*ids: str) -> x509.SubjectAlternativeName:
    """Makes a SAN extension of URIs."""
    return san(*(x509.UniformResourceIdentifier(one) for one in ids))


# DER by hand


def tlv(tag: int, *parts: bytes) -> bytes:
    """Writes one DER element."""
    body = b"".join(parts)
    if len(body) < 0x80:
        return bytes((tag, len(body))) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + body


def oid(dotted: str) -> bytes:
    """Writes an OBJECT IDENTIFIER."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    octets = bytearray((first * 40 + second,))
    for arc in rest:
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(0x80 | arc & 0x7F)
        octets += bytes(reversed(groups))
    return tlv(0x06, bytes(octets))


def sequence(*parts: bytes) -> bytes:
    """Writes a SEQUENCE."""
    return tlv(0x30, *parts)


def set_of(*parts: bytes) -> bytes:
    """Writes a SET OF, not sorted."""
    return tlv(0x31, *parts)


def extension(dotted: str, value: bytes) -> bytes:
    """Writes an Extension that is not critical."""
    return sequence(oid(dotted), tlv(0x04, value))


def extension_request(*extensions: bytes) -> bytes:
    """Writes the extensionRequest attribute (RFC 2985 section 5.4.2)."""
    return sequence(oid("1.2.840.113549.1.9.14"), set_of(sequence(*extensions)))


def handmade_csr(
    *attributes: bytes,
    subject: bytes = b"",
    spki: bytes | None = None,
    signature_hash: hashes.SHA1 | hashes.SHA256 | None = None,
) -> bytes:
    """Signs a CSR whose attributes, subject RDNs and key are given as DER."""
    private_key = key("ec-256")
    assert isinstance(private_key, ec.EllipticCurvePrivateKey)
    if spki is None:
        spki = private_key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    info = sequence(tlv(0x02, b"\0"), sequence(subject), spki, tlv(0xA0, *attributes))
    signature_hash = signature_hash or hashes.SHA256()
    signature = private_key.sign(info, ec.ECDSA(signature_hash))
    is_sha1 = isinstance(signature_hash, hashes.SHA1)
    algorithm = sequence(oid("1.2.840.10045.4.1" if is_sha1 else "1.2.840.10045.4.3.2"))
    return sequence(info, algorithm, tlv(0x03, b"\0" + signature))
