"""CSRs for tests: well-formed ones of every kind, and each malformed in one way."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import NameOID

__all__ = ["make_csr", "make_key", "pem"]

_KEYS: dict[str, CertificateIssuerPrivateKeyTypes] = {}


def make_key(kind: str = "ec-p256") -> CertificateIssuerPrivateKeyTypes:
    """A software key; RSA and DSA keys are made once per process, since they are slow."""
    if kind not in _KEYS:
        match kind.split("-"):
            case ["ec", curve]:
                curves: dict[str, ec.EllipticCurve] = {
                    "p256": ec.SECP256R1(),
                    "p384": ec.SECP384R1(),
                    "p521": ec.SECP521R1(),
                    "k256": ec.SECP256K1(),
                    "p192": ec.SECP192R1(),
                    "p224": ec.SECP224R1(),
                }
                return ec.generate_private_key(curves[curve])
            case ["rsa", bits]:
                _KEYS[kind] = rsa.generate_private_key(65537, int(bits))
            case ["dsa", bits]:
                _KEYS[kind] = dsa.generate_private_key(int(bits))
            case _:
                return ed25519.Ed25519PrivateKey.generate()
    return _KEYS[kind]


def make_csr(
    key: CertificateIssuerPrivateKeyTypes | None = None,
    *,
    common_name: str | None = None,
    subject: x509.Name | None = None,
    sans: Iterable[x509.GeneralName] = (),
    extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
) -> x509.CertificateSigningRequest:
    """A CSR, self-signed as it should be."""
    key = key or make_key()
    if subject is None:
        attributes = (
            [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        )
        subject = x509.Name(attributes)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    names = list(sans)
    if names:
        builder = builder.add_extension(
            x509.SubjectAlternativeName(names), critical=not subject.rdns
        )
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, is_critical)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm)


def pem(csr: x509.CertificateSigningRequest) -> str:
    """The CSR in PEM."""
    return csr.public_bytes(serialization.Encoding.PEM).decode("ascii")
