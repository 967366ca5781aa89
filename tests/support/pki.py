"""Roots and intermediates in software, for tests: right ones, and ones with one fault each."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "extension", "make_root", "pem"]

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_HOUR = timedelta(hours=1)


def extension(value: x509.ExtensionType, critical: bool) -> tuple[x509.ExtensionType, bool]:
    """An extension to put in a certificate, in place of one of its kind."""
    return value, critical


def ca_usage(**changes: bool) -> x509.KeyUsage:
    """The key usage of a CA."""
    usages = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    return x509.KeyUsage(**{**usages, "key_cert_sign": True, "crl_sign": True, **changes})


def pem(*certificates: x509.Certificate) -> bytes:
    """Certificates in PEM, one after the other."""
    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


def subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


@dataclass(frozen=True)
class Authority:
    """A CA whose key is in memory."""

    key: PrivateKey
    certificate: x509.Certificate

    def sign(
        self,
        request: x509.CertificateSigningRequest,
        *,
        path_length: int | None = 0,
        replace: Sequence[tuple[x509.ExtensionType, bool]] = (),
        without: Sequence[type[x509.ExtensionType]] = (),
        **options: Any,
    ) -> x509.Certificate:
        """Signs a CSR as an intermediate CA, with faults if asked."""
        return _build(
            request.public_key(),
            self,
            options.pop("subject", request.subject),
            path_length=path_length,
            replace=[
                *((one.value, one.critical) for one in request.extensions
                  if isinstance(one.value, x509.SubjectAlternativeName)),
                *replace,
            ],
            without=without,
            **options,
        )  # fmt: skip

    def make_intermediate(self, name: str = "Test intermediate", **options: Any) -> Authority:
        """Another CA below this one."""
        key = options.pop("key", None) or ec.generate_private_key(ec.SECP256R1())
        name = f"{name} {secrets.token_hex(4)}"
        return Authority(key, _build(key.public_key(), self, subject(name), **options))


def make_root(name: str = "Test root", **options: Any) -> Authority:
    """A self-signed root with a subject of its own."""
    key = options.pop("key", None) or ec.generate_private_key(ec.SECP256R1())
    own = options.pop("subject", None) or subject(f"{name} {secrets.token_hex(4)}")
    options.setdefault("lifetime", timedelta(days=3650))
    return Authority(key, _build(key.public_key(), key, own, **options))


def _build(
    public_key: Any,
    issuer: Authority | PrivateKey,
    name: x509.Name,
    *,
    path_length: int | None = None,
    lifetime: timedelta = timedelta(days=365),
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    replace: Sequence[tuple[x509.ExtensionType, bool]] = (),
    without: Sequence[type[x509.ExtensionType]] = (),
    digest: hashes.HashAlgorithm | None = None,
) -> x509.Certificate:
    start = not_before or datetime.now(UTC) - _HOUR
    signer = issuer.key if isinstance(issuer, Authority) else issuer
    issuer_name = issuer.certificate.subject if isinstance(issuer, Authority) else name
    extensions: dict[type[x509.ExtensionType], tuple[x509.ExtensionType, bool]] = {}
    for value, critical in (
        extension(x509.BasicConstraints(ca=True, path_length=path_length), True),
        extension(ca_usage(), True),
        extension(x509.SubjectKeyIdentifier.from_public_key(public_key), False),
        extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False),
        *replace,
    ):
        extensions[type(value)] = (value, critical)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer_name)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(not_after or start + lifetime)
    )
    for kind, (value, critical) in extensions.items():
        if kind not in without:
            builder = builder.add_extension(value, critical)
    return builder.sign(signer, digest or hashes.SHA256())
