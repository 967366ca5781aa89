"""Asking to revoke a certificate, and proving here that its private key is at hand.

The key makes a signature and never travels. The signed text names the certificate
and the reason, so whoever sees the proof can only ask for the same once more.
"""

from __future__ import annotations

import re
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint.errors import InvalidArgument, Violation
from meshmint.keys import PrivateKey
from meshmint.v1 import certificate_service_pb2 as pb

__all__ = ["CertificateSource", "RevocationReason"]

CertificateSource = str | bytes | x509.Certificate
"""A certificate as PEM text, as PEM or DER bytes, or parsed; of several the first."""

RevocationReason = Literal[
    "unspecified",
    "key-compromise",
    "affiliation-changed",
    "superseded",
    "cessation-of-operation",
    "privilege-withdrawn",
]
"""Why a certificate is revoked (RFC 5280 section 5.3.1)."""

_REASONS: dict[RevocationReason, pb.RevocationReason.ValueType] = {
    "unspecified": pb.REVOCATION_REASON_UNSPECIFIED,
    "key-compromise": pb.REVOCATION_REASON_KEY_COMPROMISE,
    "affiliation-changed": pb.REVOCATION_REASON_AFFILIATION_CHANGED,
    "superseded": pb.REVOCATION_REASON_SUPERSEDED,
    "cessation-of-operation": pb.REVOCATION_REASON_CESSATION_OF_OPERATION,
    "privilege-withdrawn": pb.REVOCATION_REASON_PRIVILEGE_WITHDRAWN,
}
_BY_NUMBER = {number: reason for reason, number in _REASONS.items()}

REVOCATION_REASONS: tuple[RevocationReason, ...] = tuple(_REASONS)

_SERIAL_NUMBER = re.compile(r"[0-9a-fA-F:\-]*[0-9a-fA-F][0-9a-fA-F:\-]*")


def reason_of(number: int) -> RevocationReason:
    """The name of a reason; one that this client does not know is unspecified."""
    return _BY_NUMBER.get(pb.RevocationReason.ValueType(number), "unspecified")


def revoke_message(
    serial_number: str | None,
    certificate: CertificateSource | None,
    reason: RevocationReason,
    private_key: PrivateKey | None,
) -> pb.RevokeRequest:
    """The message of Revoke, with the proof if there is a private key.

    Raises:
        InvalidArgument: Not exactly one certificate is named, or it cannot be read; the
            reason is unknown; or the private key is not the certificate's.
    """
    if reason not in _REASONS:
        raise _refused("reason", f"it is one of {', '.join(REVOCATION_REASONS)}")
    if (serial_number is None) == (certificate is None):
        raise _refused("certificate", "give either serial_number or certificate")
    request = pb.RevokeRequest(reason=_REASONS[reason])
    if certificate is None:
        if private_key is not None:
            raise _refused("certificate", "a proof with private_key needs the certificate itself")
        request.serial_number = serial_number or ""
        serial_value(request)
        return request
    parsed = _parsed(certificate)
    request.certificate = parsed.public_bytes(Encoding.PEM).decode("ascii")
    if private_key is not None:
        request.proof_of_possession = _proof(parsed, request.reason, private_key)
    return request


def serial_value(request: pb.RevokeRequest) -> int:
    """The serial number that a request is about, to compare the answer with.

    Raises:
        InvalidArgument: It is not hexadecimal.
    """
    if request.certificate:
        return x509.load_pem_x509_certificate(request.certificate.encode("ascii")).serial_number
    if not _SERIAL_NUMBER.fullmatch(request.serial_number):
        raise _refused("serial_number", "use hexadecimal digits, such as 3f:0a:c1")
    return int(request.serial_number.replace(":", "").replace("-", ""), 16)


def _parsed(certificate: CertificateSource) -> x509.Certificate:
    if isinstance(certificate, x509.Certificate):
        return certificate
    try:
        content = certificate.encode("ascii") if isinstance(certificate, str) else certificate
        if isinstance(certificate, str) or b"-----BEGIN " in content:
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except ValueError as error:
        raise _refused("certificate", "there is no certificate in it: give PEM or DER") from error


def _proof(
    certificate: x509.Certificate,
    reason: pb.RevocationReason.ValueType,
    private_key: PrivateKey,
) -> bytes:
    """The signature that RevokeRequest.proof_of_possession describes."""
    if private_key.public_key() != certificate.public_key():
        raise _refused("private_key", "it is not the key of the certificate")
    fingerprint = certificate.fingerprint(hashes.SHA256()).hex()
    text = (
        "meshmint.v1.CertificateService/Revoke\n"
        f"{fingerprint}\n{pb.RevocationReason.Name(reason)}\n"
    ).encode("ascii")
    if isinstance(private_key, ed25519.Ed25519PrivateKey):
        return private_key.sign(text)
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        return private_key.sign(text, ec.ECDSA(hashes.SHA256()))
    return private_key.sign(text, padding.PKCS1v15(), hashes.SHA256())


def _refused(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(f"{field}: {description}", violations=[Violation(field, description)])
