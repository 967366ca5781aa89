"""What is in a certificate, as plain values for a table or for JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshmint.verify import spiffe_id_of

__all__ = ["Inspection", "inspect_certificate"]

_KEY_USAGES = {
    "digital_signature": "digitalSignature",
    "content_commitment": "nonRepudiation",
    "key_encipherment": "keyEncipherment",
    "data_encipherment": "dataEncipherment",
    "key_agreement": "keyAgreement",
    "key_cert_sign": "keyCertSign",
    "crl_sign": "cRLSign",
}
_EXTENDED_KEY_USAGES = {
    ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth",
    ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth",
    ExtendedKeyUsageOID.CODE_SIGNING: "codeSigning",
    ExtendedKeyUsageOID.EMAIL_PROTECTION: "emailProtection",
    ExtendedKeyUsageOID.TIME_STAMPING: "timeStamping",
    ExtendedKeyUsageOID.OCSP_SIGNING: "OCSPSigning",
    ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE: "anyExtendedKeyUsage",
}
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True, slots=True)
class Inspection:
    """One certificate.

    Attributes:
        spiffe_id: The SPIFFE ID if it is an X509-SVID.
        subject: RFC 4514.
        issuer: RFC 4514.
        serial_number: Lower-case hexadecimal.
        names: The SANs, as ``DNS:…``, ``IP:…``, ``URI:…``, ``email:…``.
        not_before: Start of the validity, UTC.
        not_after: End of the validity, UTC.
        key: Kind and size of the public key.
        key_usage: Names of RFC 5280; None without the extension.
        extended_key_usage: Names or object identifiers; None without the extension.
        is_ca: Whether it may be a CA.
        path_length: How many CAs may be below it; None: any number.
        fingerprint_sha256: Lower-case hexadecimal.
    """

    spiffe_id: str | None
    subject: str
    issuer: str
    serial_number: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    key: str
    key_usage: tuple[str, ...] | None
    extended_key_usage: tuple[str, ...] | None
    is_ca: bool
    path_length: int | None
    fingerprint_sha256: str

    def document(self) -> dict[str, Any]:
        """The values in the types that JSON has."""
        return {
            name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
        }


def inspect_certificate(certificate: x509.Certificate) -> Inspection:
    """Reads a certificate, whoever made it.

    Raises:
        ValueError: Its extensions cannot be parsed.
    """
    extensions = certificate.extensions
    names = _extension(extensions, x509.SubjectAlternativeName)
    usage = _extension(extensions, x509.KeyUsage)
    extended = _extension(extensions, x509.ExtendedKeyUsage)
    basic = _extension(extensions, x509.BasicConstraints)
    return Inspection(
        spiffe_id=spiffe_id_of(certificate) or None,
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        serial_number=f"{certificate.serial_number:x}",
        names=tuple(_names(names or ())),
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        key=_key(certificate),
        key_usage=None
        if usage is None
        else tuple(name for field, name in _KEY_USAGES.items() if getattr(usage, field)),
        extended_key_usage=None
        if extended is None
        else tuple(_EXTENDED_KEY_USAGES.get(oid, oid.dotted_string) for oid in extended),
        is_ca=basic is not None and basic.ca,
        path_length=basic.path_length if basic is not None else None,
        fingerprint_sha256=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _extension(extensions: x509.Extensions, kind: type[Any]) -> Any:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _names(names: Iterable[x509.GeneralName]) -> Iterable[str]:
    for name in names:
        match name:
            case x509.DNSName():
                yield f"DNS:{name.value}"
            case x509.IPAddress():
                yield f"IP:{name.value}"
            case x509.UniformResourceIdentifier():
                yield f"URI:{name.value}"
            case x509.RFC822Name():
                yield f"email:{name.value}"
            case x509.OtherName():
                yield f"other:{name.type_id.dotted_string}"
            case _:
                yield f"{type(name).__name__}:{name.value}"


def _key(certificate: x509.Certificate) -> str:
    match certificate.public_key():
        case ec.EllipticCurvePublicKey() as key:
            return f"EC {_CURVES.get(key.curve.name, key.curve.name)}"
        case rsa.RSAPublicKey() as key:
            return f"RSA {key.key_size}"
        case ed25519.Ed25519PublicKey():
            return "Ed25519"
        case ed448.Ed448PublicKey():
            return "Ed448"
        case other:
            return type(other).__name__
