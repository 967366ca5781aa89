"""Reads certificate signing requests (PKCS#10, RFC 2986).

The one place where bytes made by strangers become values: whatever is wrong
with them ends as InvalidRequest, and nothing of them is repaired or dropped
without being told. What a role makes of the contents is not judged here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtensionOID, NameOID

from meshmint_server.errors import InvalidRequest, Violation
from meshmint_server.policy.other_names import decode_other_name
from meshmint_server.policy.pem import decode_pem_block
from meshmint_server.policy.request import CsrContents, Names, OtherName, PublicKey

__all__ = ["parse_csr", "parse_csr_der"]

MAX_BYTES = 64 * 1024
MAX_RSA_BITS = 8192
MIN_RSA_EXPONENT = 65_537
MAX_RSA_EXPONENT_BITS = 256  # FIPS 186-5 appendix A.1.1

_PEM_LABELS = frozenset({"CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST"})

_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_EXTENSION_REQUESTS = frozenset({"1.2.840.113549.1.9.14", "1.3.6.1.4.1.311.2.1.14"})

# What cryptography raises at bytes that are not what they should be.
_MALFORMED = (
    ValueError,  # also UnicodeError and asn1 errors
    TypeError,
    LookupError,  # KeyError at a string type that X.500 does not know
    OverflowError,
    UnsupportedAlgorithm,
    InvalidSignature,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


def parse_csr(pem: str) -> CsrContents:
    """Reads a CSR from PEM: one CERTIFICATE REQUEST block, nothing around it.

    Raises:
        InvalidRequest: It is anything else, or parse_csr_der refuses it.
    """
    try:
        der = decode_pem_block(pem, _PEM_LABELS, "CSR", max_bytes=MAX_BYTES)
    except ValueError as error:
        raise _malformed(str(error)) from None
    return parse_csr_der(der)


def parse_csr_der(der: bytes) -> CsrContents:
    """Reads a CSR from DER, and checks its self-signature.

    Raises:
        InvalidRequest: It is empty, over 64 KiB, no CSR, has bytes after it, a
            key that no role could accept, a self-signature that does not hold,
            or contents that cannot be read unambiguously.
    """
    if not der:
        raise _malformed("the CSR is empty")
    if len(der) > MAX_BYTES:
        raise _malformed(f"a CSR has at most {MAX_BYTES // 1024} KiB")
    with _reading("it is cut short, has bytes after its end, or is no PKCS#10 request"):
        csr = x509.load_der_x509_csr(der)
    public_key = _read_key(csr)
    _check_signature(csr)
    found = _Found()
    with _reading("its subject cannot be read"), warnings.catch_warnings():
        # The parser warns of lengths that X.520 forbids; they are not taken over.
        warnings.simplefilter("ignore")
        _read_subject(csr.subject, found)
    _check_attributes(csr)
    with _reading("its extensions cannot be read"):
        _read_extensions(csr.extensions, found)
    return CsrContents(
        public_key=public_key,
        names=Names(
            common_name=found.common_name,
            dns_names=tuple(found.dns_names),
            ip_addresses=tuple(found.ip_addresses),
            uris=tuple(found.uris),
            email_addresses=tuple(found.email_addresses),
            other_names=tuple(found.other_names),
            subject_serial_number=found.serial_number,
            user_ids=tuple(found.user_ids),
        ),
        ignored_subject=tuple(dict.fromkeys(found.ignored_subject)),
        key_usage=found.key_usage,
        ext_key_usages=found.ext_key_usages,
        wants_ca=found.wants_ca,
        unknown_extensions=tuple(found.unknown_extensions),
    )


@dataclass(slots=True)
class _Found:
    """What has been read so far."""

    common_name: str = ""
    serial_number: str = ""
    user_ids: list[str] = field(default_factory=list)
    ignored_subject: list[str] = field(default_factory=list)
    dns_names: list[str] = field(default_factory=list)
    ip_addresses: list[str] = field(default_factory=list)
    uris: list[str] = field(default_factory=list)
    email_addresses: list[str] = field(default_factory=list)
    other_names: list[OtherName] = field(default_factory=list)
    key_usage: frozenset[str] | None = None
    ext_key_usages: frozenset[x509.ObjectIdentifier] | None = None
    wants_ca: bool = False
    unknown_extensions: list[str] = field(default_factory=list)


def _malformed(description: str) -> InvalidRequest:
    return InvalidRequest(
        f"The CSR cannot be used: {description}.", violations=[Violation("csr", description)]
    )


@contextmanager
def _reading(problem: str) -> Iterator[None]:
    """Turns what the parser raises into InvalidRequest."""
    try:
        yield
    except InvalidRequest:
        raise
    except _MALFORMED:
        raise _malformed(problem) from None


def _read_key(csr: x509.CertificateSigningRequest) -> PublicKey:
    with _reading("its public key is of an unknown kind or curve, or is broken"):
        key = csr.public_key()
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey):
        if not isinstance(key.curve, _CURVES):
            raise _malformed(f"EC keys are on P-256, P-384 or P-521, not {key.curve.name}")
        return key
    if isinstance(key, rsa.RSAPublicKey):
        _check_rsa(key)
        return key
    raise _malformed("keys are RSA, EC or Ed25519")


def _check_rsa(key: rsa.RSAPublicKey) -> None:
    if key.key_size > MAX_RSA_BITS:
        raise _malformed(f"an RSA key has at most {MAX_RSA_BITS} bits, and this {key.key_size}")
    numbers = key.public_numbers()
    if (
        numbers.e < MIN_RSA_EXPONENT
        or not numbers.e & 1
        or numbers.e.bit_length() > MAX_RSA_EXPONENT_BITS
    ):
        raise _malformed("an RSA key's exponent is odd, at least 65537 and under 2^256")
    if not numbers.n & 1:
        raise _malformed("the RSA key's modulus is even")


def _check_signature(csr: x509.CertificateSigningRequest) -> None:
    """Checks that the caller holds the private key (RFC 2986 section 4.2)."""
    with _reading("its signature algorithm is not supported; sign it with SHA-256"):
        algorithm = csr.signature_hash_algorithm
        if algorithm is not None and not isinstance(algorithm, _HASHES):
            raise _malformed("it is not signed with SHA-256, SHA-384 or SHA-512")
        is_valid = csr.is_signature_valid
    if not is_valid:
        raise _malformed("its self-signature does not hold; sign it with the key it names")


def _check_attributes(csr: x509.CertificateSigningRequest) -> None:
    """Refuses a second request for extensions, of which only one would be read."""
    with _reading("its attributes cannot be read"):
        requests = sum(a.oid.dotted_string in _EXTENSION_REQUESTS for a in csr.attributes)
    if requests > 1:
        raise _malformed("it asks for extensions in more than one attribute")


def _read_subject(subject: x509.Name, found: _Found) -> None:
    for attribute in subject:
        value = attribute.value
        if attribute.oid == NameOID.COMMON_NAME:
            if found.common_name:
                raise _malformed("its subject has more than one common name")
            found.common_name = _subject_text(value, "common name")
        elif attribute.oid == NameOID.SERIAL_NUMBER:
            if found.serial_number:
                raise _malformed("its subject has more than one serialNumber")
            found.serial_number = _subject_text(value, "serialNumber")
        elif attribute.oid == NameOID.USER_ID:
            found.user_ids.append(_subject_text(value, "user id"))
        else:
            found.ignored_subject.append(attribute.rfc4514_attribute_name)


def _subject_text(value: str | bytes, kind: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise _malformed(f"its {kind} is empty, no text, or has control characters")
    return value


def _read_extensions(extensions: x509.Extensions, found: _Found) -> None:
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            for name in value:
                _read_san(name, found)
        elif isinstance(value, x509.KeyUsage):
            found.key_usage = _read_key_usage(value)
        elif isinstance(value, x509.ExtendedKeyUsage):
            found.ext_key_usages = frozenset(value)
        elif isinstance(value, x509.BasicConstraints):
            found.wants_ca = value.ca
        elif extension.oid != ExtensionOID.SUBJECT_KEY_IDENTIFIER:
            # A subject key identifier is ours to make; any other is the role's to refuse.
            found.unknown_extensions.append(extension.oid.dotted_string)


def _read_san(name: x509.GeneralName, found: _Found) -> None:
    if isinstance(name, x509.DNSName):
        found.dns_names.append(_san_text(name.value))
    elif isinstance(name, x509.RFC822Name):
        found.email_addresses.append(_san_text(name.value))
    elif isinstance(name, x509.UniformResourceIdentifier):
        found.uris.append(_san_text(name.value))
    elif isinstance(name, x509.IPAddress):
        text = str(name.value)
        if "/" in text:
            raise _malformed("it names a network where an IP address belongs")
        found.ip_addresses.append(text)
    elif isinstance(name, x509.OtherName):
        try:
            found.other_names.append(decode_other_name(name))
        except ValueError as error:
            raise _malformed(f"an otherName SAN {error}") from None
    else:
        raise _malformed("its SANs hold a directory name or registered ID, which no role grants")


def _san_text(value: str) -> str:
    # IA5String has control characters; a name has none (and a NUL fooled many).
    if not value or not value.isascii() or not value.isprintable():
        raise _malformed("a SAN is empty, or has control or non-ASCII characters")
    return value


def _read_key_usage(usage: x509.KeyUsage) -> frozenset[str]:
    names = {
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
    }
    if usage.key_agreement:
        names |= {"encipher_only", "decipher_only"}
    return frozenset(name for name in names if getattr(usage, name))
