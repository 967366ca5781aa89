"""Leaf certificates of issuers whose keys are in memory: what a service would never issue, too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshmint_server.authority import Issuer
from meshmint_server.store import IssuerState
from support.pki import Authority

__all__ = ["make_issuer", "make_leaf", "to_der", "to_pem"]


def make_issuer(authority: Authority, name: str = "one", *, crl_shards: int = 1) -> Issuer:
    """The authority as an active issuer, which cannot sign by itself."""
    certificate = authority.certificate
    return Issuer(
        name=name,
        state=IssuerState.ACTIVE,
        certificate=certificate,
        certificate_pem=to_pem(certificate),
        chain_pem=(),
        roots_pem=(to_pem(certificate),),
        trust_bundle_pem=(to_pem(certificate),),
        key=None,  # type: ignore[arg-type]
        authority_key_identifier=x509.AuthorityKeyIdentifier.from_issuer_public_key(
            authority.key.public_key()
        ),
        not_after=certificate.not_valid_after_utc,
        crl_shards=crl_shards,
    )


def make_leaf(
    authority: Authority,
    key: Any = None,
    *,
    serial_number: int | None = None,
    lifetime: timedelta = timedelta(hours=1),
    is_ca: bool = False,
    issuer: x509.Name | None = None,
) -> x509.Certificate:
    """A certificate that the authority's key signs, right or wrong."""
    now = datetime.now(UTC)
    key = key or ec.generate_private_key(ec.SECP256R1())
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer or authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial_number or x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        .sign(authority.key, hashes.SHA256())
    )


def to_pem(certificate: x509.Certificate) -> str:
    """PEM text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")


def to_der(certificate: x509.Certificate) -> bytes:
    """DER."""
    return certificate.public_bytes(serialization.Encoding.DER)
