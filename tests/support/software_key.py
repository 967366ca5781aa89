"""An issuer with a software key, for what a token cannot do on demand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from meshmint_server.authority import Issuer
from meshmint_server.keys import KeyAttributes, SignatureAlgorithm, ToBeSigned
from meshmint_server.store import IssuerState

__all__ = ["SoftwareKey", "software_issuer"]


class SoftwareKey:
    """A signing key that misbehaves on demand: no real token does so when asked."""

    uri = "file:test.pem"

    def __init__(self, private_key: ec.EllipticCurvePrivateKey | None = None) -> None:
        self.private_key = private_key or ec.generate_private_key(ec.SECP256R1())
        self.public_key = self.private_key.public_key()
        self.signatures = 0
        self.fault: BaseException | None = None
        self.delay = 0.0
        self.is_lying = False

    async def sign(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        await asyncio.sleep(self.delay)
        if self.fault is not None:
            raise self.fault
        self.signatures += 1
        return self.sign_now(data + b"!" if self.is_lying else data)

    def sign_now(self, data: bytes) -> bytes:
        """The signature, without a fault."""
        return self.private_key.sign(data, ec.ECDSA(hashes.SHA256()))

    def complete(self, to_be_signed: ToBeSigned) -> x509.Certificate:
        """The certificate with its signature."""
        signature = self.sign_now(to_be_signed.data)
        return x509.load_der_x509_certificate(to_be_signed.assemble(signature))

    async def attributes(self) -> KeyAttributes:
        raise NotImplementedError

    def certify(self, lifetime: timedelta) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "issuer")])
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.public_key)
            .serial_number(1)
            .not_valid_before(now - timedelta(days=2))
            .not_valid_after(now + lifetime)
            .sign(self.private_key, hashes.SHA256())
        )


def software_issuer(key: SoftwareKey, lifetime: timedelta) -> Issuer:
    """An active issuer with this key, certified by itself."""
    certificate = key.certify(lifetime)
    pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return Issuer(
        name="one",
        state=IssuerState.ACTIVE,
        certificate=certificate,
        certificate_pem=pem,
        chain_pem=(),
        roots_pem=(pem,),
        trust_bundle_pem=(pem,),
        key=key,
        authority_key_identifier=x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key),
        not_after=certificate.not_valid_after_utc,
    )
