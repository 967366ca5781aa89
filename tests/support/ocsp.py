"""OCSP requests for tests: right ones, and ones that no builder would make, in DER by hand."""

from __future__ import annotations

import base64
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

__all__ = [
    "NONCE",
    "UNKNOWN_OID",
    "Reply",
    "ask",
    "cert_id",
    "element",
    "extension",
    "fetch",
    "get",
    "get_url",
    "post",
    "request_for",
    "request_of",
    "single",
]

SHA1 = bytes.fromhex("06052b0e03021a")
NONCE = bytes.fromhex("06092b0601050507300102")
UNKNOWN_OID = bytes.fromhex("06032a0304")


def element(tag: int, *contents: bytes) -> bytes:
    """One DER element."""
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(octets))) + octets + content


def extension(oid: bytes, value: bytes, *, critical: bool = False) -> bytes:
    return element(0x30, oid, b"\x01\x01\xff" if critical else b"", element(0x04, value))


def cert_id(serial: bytes = b"\x05", algorithm: bytes = SHA1, size: int = 20) -> bytes:
    return element(
        0x30,
        element(0x30, algorithm, b"\x05\x00"),
        element(0x04, b"a" * size),
        element(0x04, b"b" * size),
        element(0x02, serial),
    )


def single(identity: bytes | None = None, extensions: Sequence[bytes] = ()) -> bytes:
    tagged = element(0xA0, element(0x30, *extensions)) if extensions else b""
    return element(0x30, identity or cert_id(), tagged)


def request_of(
    *singles: bytes,
    extensions: Sequence[bytes] = (),
    before: bytes = b"",
    signature: bytes = b"",
) -> bytes:
    tagged = element(0xA2, element(0x30, *extensions)) if extensions else b""
    return element(0x30, element(0x30, before, element(0x30, *singles), tagged), signature)


def request_for(
    issuer: x509.Certificate,
    serial: int,
    *,
    algorithm: hashes.HashAlgorithm | None = None,
    nonce: bytes | None = None,
) -> bytes:
    """A request about a serial number of an issuer."""
    algorithm = algorithm or hashes.SHA1()  # noqa: S303 - what clients use
    name = hashes.Hash(algorithm)
    name.update(issuer.subject.public_bytes())
    # Asks about the issuer itself, whose name the issuer's issuer has given.
    named = ocsp.OCSPRequestBuilder().add_certificate(issuer, issuer, algorithm).build()
    builder = ocsp.OCSPRequestBuilder().add_certificate_by_hash(
        name.finalize(), named.issuer_key_hash, serial, algorithm
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


@dataclass(frozen=True)
class Reply:
    """What came over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def response(self) -> ocsp.OCSPResponse:
        assert self.status == 200, self.body
        assert self.headers["content-type"] == "application/ocsp-response"
        return ocsp.load_der_ocsp_response(self.body)

    @property
    def outcome(self) -> str:
        """What it says: a certificate's status, or the error."""
        response = self.response
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            return response.response_status.name.lower()
        return response.certificate_status.name.lower()


def fetch(request: urllib.request.Request) -> Reply:
    try:
        with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
            return Reply(response.status, _lower(response.headers.items()), response.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, _lower(error.headers.items()), error.read())


def _lower(headers: Sequence[tuple[str, str]]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers}


def post(base: str, body: bytes, content_type: str = "application/ocsp-request") -> Reply:
    """A connection of its own, so that any worker may answer."""
    headers = {"Content-Type": content_type}
    return fetch(urllib.request.Request(f"{base}/ocsp", body, headers))  # noqa: S310


def get_url(base: str, body: bytes) -> str:
    """RFC 6960 appendix A.1: base64, then escaped."""
    return f"{base}/ocsp/{urllib.parse.quote(base64.b64encode(body).decode(), safe='')}"


def get(base: str, body: bytes) -> Reply:
    return fetch(urllib.request.Request(get_url(base, body)))  # noqa: S310


def ask(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs `openssl ocsp`."""
    return subprocess.run(
        ["openssl", "ocsp", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=30, cwd=cwd,
    )  # fmt: skip
