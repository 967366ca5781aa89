"""Certificates out of what an operator brings: PEM with anything around it, DER, PKCS#7.

Nothing is judged here but the encoding. A private key in the material is refused:
the issuer's key is in its token, and no other has any business here.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import pkcs7

from meshmint_server.errors import InvalidRequest

__all__ = ["read_certificates"]

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[ \t]*\r?\n(.*?)-----END \1-----", re.DOTALL)
_CERTIFICATES = (b"CERTIFICATE", b"X509 CERTIFICATE")
_LARGEST = 1 << 20
_MOST = 100
_SEQUENCE = 0x30


def read_certificates(materials: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Every certificate in the materials, each once, in the order found.

    Raises:
        InvalidRequest: Something is no certificate, is a private key, or is too much.
    """
    found: dict[bytes, x509.Certificate] = {}
    for material in materials:
        if len(material) > _LARGEST:
            raise _refusal("A file is larger than 1 MiB: that is no certificate chain.")
        for certificate in _read(material):
            found.setdefault(certificate.fingerprint(hashes.SHA256()), certificate)
    if not found:
        raise _refusal("There is no certificate in what was given: PEM or DER is expected.")
    if len(found) > _MOST:
        raise _refusal(f"There are more than {_MOST} certificates: give this issuer's chain alone.")
    return tuple(found.values())


def _read(material: bytes) -> list[x509.Certificate]:
    if b"-----BEGIN" in material:
        return _read_pem(material)
    if not material.strip():
        raise _refusal("A file is empty.")
    if material[0] != _SEQUENCE:
        raise _refusal("A file is neither PEM nor DER.")
    try:
        return list(pkcs7.load_der_pkcs7_certificates(material))
    except ValueError:
        return [_load(der) for der in _split_der(material)]


def _read_pem(material: bytes) -> list[x509.Certificate]:
    certificates: list[x509.Certificate] = []
    blocks = list(_BLOCK.finditer(material))
    if material.count(b"-----BEGIN") != len(blocks):
        raise _refusal("A PEM block is cut short or broken.")
    for block in blocks:
        label = block[1]
        if label.endswith(b"PRIVATE KEY"):
            raise _refusal(
                "There is a private key in what was given. The issuer's key never leaves its "
                "token; give certificates alone, and treat a key that travelled as lost."
            )
        if label == b"PKCS7":
            try:
                certificates += pkcs7.load_pem_pkcs7_certificates(block[0])
            except ValueError:
                raise _refusal("A PKCS7 block cannot be read.") from None
        elif label in _CERTIFICATES:
            try:
                der = base64.b64decode(b"".join(block[2].split()), validate=True)
            except binascii.Error:
                raise _refusal("A PEM block is not base64.") from None
            certificates.append(_load(der))
    return certificates


def _split_der(material: bytes) -> list[bytes]:
    pieces: list[bytes] = []
    start = 0
    while start < len(material):
        end = _end_of_element(material, start)
        if end is None:
            raise _refusal("A DER file is cut short, or is no certificate.")
        pieces.append(material[start:end])
        start = end
    return pieces


def _end_of_element(data: bytes, start: int) -> int | None:
    """Where the SEQUENCE at `start` ends (X.690 section 8.1.3); None if it does not."""
    if len(data) < start + 2 or data[start] != _SEQUENCE:
        return None
    length, body = data[start + 1], start + 2
    if length >= 0x80:
        octets = length & 0x7F
        length = int.from_bytes(data[body : body + octets], "big")
        body += octets
    return body + length if body + length <= len(data) else None


def _load(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        # The rest is parsed when first looked at; look now, where it can be refused.
        certificate.public_key()
        list(certificate.extensions)
        _ = (certificate.subject, certificate.issuer, certificate.signature_algorithm_oid)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _refusal(f"A certificate cannot be read: {error}.") from None
    except x509.InvalidVersion:
        raise _refusal("A certificate has a version that X.509 does not have.") from None
    return certificate


def _refusal(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="CERTIFICATES_UNREADABLE")
