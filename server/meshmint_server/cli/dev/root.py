"""The development root: in a file, which is what a root must never be in earnest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from meshmint_server.cli.dev.state import StateDirectory, write_file

__all__ = ["DevelopmentRoot"]

_DAY: Final = timedelta(days=1)
_ROOT_LIFETIME: Final = 10 * 365 * _DAY
_INTERMEDIATE_LIFETIME: Final = 5 * 365 * _DAY
_BACK_DATED: Final = timedelta(minutes=5)

_CA_USAGES: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class DevelopmentRoot:
    """A self-signed CA that signs this service's intermediate, as an offline root would."""

    def __init__(self, state: StateDirectory) -> None:
        if not (state.root_key.exists() and state.root_certificate.exists()):
            _create(state)
        key = serialization.load_pem_private_key(state.root_key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101 - we made it
        self._key = key
        self.certificate = x509.load_pem_x509_certificate(state.root_certificate.read_bytes())

    @property
    def certificate_pem(self) -> bytes:
        """The root's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, csr_pem: str) -> bytes:
        """The certificate for an intermediate's CSR, PEM: its subject and its SPIFFE ID."""
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        end = datetime.now(UTC).replace(microsecond=0) + _INTERMEDIATE_LIFETIME
        certificate = (
            _builder(csr.subject, self.certificate.subject, csr.public_key(), path_length=0)
            .not_valid_after(min(end, self.certificate.not_valid_after_utc))
            .add_extension(names.value, critical=names.critical)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
                    self.certificate.extensions.get_extension_for_class(
                        x509.SubjectKeyIdentifier
                    ).value
                ),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)


def _create(state: StateDirectory) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Meshmint development"),
            # Unique: a new directory must not make a root of the same name as an old one.
            x509.NameAttribute(
                NameOID.COMMON_NAME, f"Development root {x509.random_serial_number():x}"[:28]
            ),
        ]
    )
    certificate = (
        _builder(subject, subject, key.public_key(), path_length=1)
        .not_valid_after(datetime.now(UTC).replace(microsecond=0) + _ROOT_LIFETIME)
        .sign(key, hashes.SHA256())
    )
    write_file(
        state.root_key,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        mode=0o600,
    )
    write_file(
        state.root_certificate,
        certificate.public_bytes(serialization.Encoding.PEM),
        mode=0o644,
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC).replace(microsecond=0) - _BACK_DATED)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_CA_USAGES, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
