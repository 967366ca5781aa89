"""What a caller asks for, parsed but not yet judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

__all__ = [
    "CertificateRequest",
    "CsrContents",
    "KeyAlgorithm",
    "Names",
    "OtherName",
    "PublicKey",
    "Validity",
    "shape_of",
]

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


class KeyAlgorithm(Enum):
    """A kind and size of a subject's key; the value is (key_type, key_bits)."""

    EC_P256 = ("ec", 256)
    EC_P384 = ("ec", 384)
    EC_P521 = ("ec", 521)
    RSA_2048 = ("rsa", 2048)
    RSA_3072 = ("rsa", 3072)
    RSA_4096 = ("rsa", 4096)
    ED25519 = ("ed25519", 0)


@dataclass(frozen=True, slots=True)
class OtherName:
    """An otherName SAN whose value is a UTF8String (RFC 5280 section 4.2.1.6)."""

    type_id: str
    value: str


@dataclass(frozen=True, slots=True)
class Names:
    """Names as they were asked for: text, unparsed and not normalised."""

    common_name: str = ""
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()
    email_addresses: tuple[str, ...] = ()
    other_names: tuple[OtherName, ...] = ()
    subject_serial_number: str = ""
    user_ids: tuple[str, ...] = ()
    exclude_common_name_from_sans: bool = False


@dataclass(frozen=True, slots=True)
class Validity:
    """The validity asked for. At most one of ttl and not_after is set. UTC."""

    ttl: timedelta | None = None
    not_after: datetime | None = None
    not_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class CsrContents:
    """What a CSR holds, its self-signature checked.

    Attributes:
        public_key: The subject's key.
        names: The names in subject and SAN extension, as text.
        ignored_subject: RFC 4514 names of subject attributes that roles, not
            callers, decide (O, OU, C, …); reported as a warning.
        key_usage: The key usages asked for, in x509.KeyUsage's attribute names
            (``digital_signature``, …); None if not asked.
        ext_key_usages: The extended key usages asked for; None if not asked.
        wants_ca: Whether it asks for basicConstraints CA:TRUE.
        unknown_extensions: Other extensions asked for, dotted decimal.
    """

    public_key: PublicKey
    names: Names
    ignored_subject: tuple[str, ...] = ()
    key_usage: frozenset[str] | None = None
    ext_key_usages: frozenset[x509.ObjectIdentifier] | None = None
    wants_ca: bool = False
    unknown_extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """One request to Issue (csr is None) or Sign (csr is set).

    Attributes:
        names: Names given beside the CSR, or alone.
        validity: The validity asked for.
        key_algorithm: Issue only: the kind of key asked for; None leaves it to the role.
        csr: Sign only: the CSR's contents.
    """

    names: Names = field(default_factory=Names)
    validity: Validity = field(default_factory=Validity)
    key_algorithm: KeyAlgorithm | None = None
    csr: CsrContents | None = None


def shape_of(request: CertificateRequest) -> object:
    """All that a request asks for, but the validity and the value of the key; hashable."""
    csr = request.csr
    if csr is None:
        return (request.names, request.key_algorithm)
    key = csr.public_key
    if isinstance(key, ec.EllipticCurvePublicKey):
        kind: object = key.curve.name
    else:
        kind = key.key_size if isinstance(key, rsa.RSAPublicKey) else 0
    return (
        request.names,
        request.key_algorithm,
        kind,
        csr.names,
        csr.ignored_subject,
        csr.key_usage,
        csr.ext_key_usages,
        csr.wants_ca,
        csr.unknown_extensions,
    )
