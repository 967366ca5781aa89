"""Requests as strangers send them: read whole and strictly, or refused. Pure.

cryptography reads them; what it does not show, the extensions of a single request,
is looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp

__all__ = ["HASHES", "IssuerId", "MalformedRequest", "OcspRequest", "issuer_ids", "parse_request"]

# SHA-1 names an issuer here and protects nothing; RFC 5019 section 2.1.1 asks for it.
HASHES: dict[str, hashes.HashAlgorithm] = {
    one.name: one
    for one in (hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512())  # noqa: S303
}

# RFC 5280 section 4.1.2.2: positive, at most 20 octets.
_SERIALS = range(1, 1 << 160)
_LONGEST_NONCE = 128

_BOOLEAN = 0x01
_SEQUENCE = 0x30
_TAGGED_0 = 0xA0


class MalformedRequest(ValueError):
    """It is no OCSP request, or not one that can be answered as it asks to be."""


class IssuerId(NamedTuple):
    """How a request names the issuer: by hashes of its name and of its key.

    Attributes:
        algorithm: Name of the hash, such as ``sha1``.
    """

    algorithm: str
    name_hash: bytes
    key_hash: bytes


class OcspRequest(NamedTuple):
    """A question about one certificate (RFC 6960 section 4.1).

    Attributes:
        nonce: To be sent back; None if there is none.
    """

    issuer: IssuerId
    serial_number: int
    nonce: bytes | None


def issuer_ids(certificate: x509.Certificate) -> Iterator[IssuerId]:
    """Every way in which a request can name the issuer with this certificate."""
    # The name as our certificates have it (issuance writes the same bytes).
    name = certificate.subject.public_bytes()
    for algorithm in HASHES.values():
        digest = hashes.Hash(algorithm)
        digest.update(name)
        # The hash of the key's bits alone, which cryptography gives nowhere else. The name
        # that it hashes here is that of the issuer's issuer.
        request = (
            ocsp.OCSPRequestBuilder().add_certificate(certificate, certificate, algorithm).build()
        )
        yield IssuerId(algorithm.name, digest.finalize(), request.issuer_key_hash)


def parse_request(document: bytes) -> OcspRequest:
    """Reads a request in DER.

    A signature on it is not looked at (RFC 6960 section 4.1.2 leaves that open): who
    asks makes no difference to what is answered.

    Raises:
        MalformedRequest: It is not DER, asks about none or several certificates, has a
            serial number that no certificate has, a nonce that is empty or longer than
            128 octets (RFC 9654 section 2.1), or a critical extension that is unknown.
    """
    try:
        request = ocsp.load_der_ocsp_request(document)
        extensions = request.extensions
    except (ValueError, NotImplementedError, x509.DuplicateExtension) as error:
        raise MalformedRequest(str(error)) from None
    if request.serial_number not in _SERIALS:
        raise MalformedRequest("the serial number is not that of a certificate")
    if _has_critical_extension_of_single_request(document):
        raise MalformedRequest("a critical extension is unknown")
    return OcspRequest(
        IssuerId(_hash_name(request), request.issuer_name_hash, request.issuer_key_hash),
        request.serial_number,
        _nonce(extensions),
    )


def _hash_name(request: ocsp.OCSPRequest) -> str:
    try:
        return request.hash_algorithm.name
    except UnsupportedAlgorithm:
        return ""  # names an issuer in a way in which none is known


def _nonce(extensions: x509.Extensions) -> bytes | None:
    nonce = None
    for extension in extensions:
        if isinstance(extension.value, x509.OCSPNonce):
            nonce = extension.value.nonce
            if not 1 <= len(nonce) <= _LONGEST_NONCE:
                raise MalformedRequest("a nonce has 1 to 128 octets")
        elif extension.critical and isinstance(extension.value, x509.UnrecognizedExtension):
            raise MalformedRequest("a critical extension is unknown")
    return nonce


def _has_critical_extension_of_single_request(document: bytes) -> bool:
    """Whether the one Request of a request that was read has a critical extension.

    None is known here: the service locator (RFC 6960 section 4.4.6) is for servers
    that pass requests on.
    """
    whole = _first(document, _SEQUENCE)
    tbs_request = _first(whole, _SEQUENCE)
    request_list = _first(tbs_request, _SEQUENCE)
    request = _first(request_list, _SEQUENCE)
    tagged = _first(request, _TAGGED_0)
    extensions = _first(tagged, _SEQUENCE)
    return any(any(_first(extension, _BOOLEAN)) for _, extension in _elements(extensions))


def _first(content: bytes, tag: int) -> bytes:
    """What the first element with this tag holds; nothing if there is none."""
    return next((value for found, value in _elements(content) if found == tag), b"")


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The DER elements in a row: tag and content (X.690 section 8.1). Of DER that was read."""
    start = 0
    while start < len(content):
        tag, length = content[start], content[start + 1]
        start += 2
        if length >= 0x80:
            octets = length & 0x7F
            length = int.from_bytes(content[start : start + octets], "big")
            start += octets
        yield tag, content[start : start + length]
        start += length
