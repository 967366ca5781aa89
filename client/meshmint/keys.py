"""Key pairs and certificate signing requests, made here so that no key travels.

Keys come from the operating system's random numbers by way of `cryptography`,
and leave this module only as objects or unencrypted PKCS#8.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from meshmint.errors import InvalidArgument, Violation

__all__ = ["KeyAlgorithm", "PrivateKey", "generate_key", "make_csr", "private_key_pem"]

KeyAlgorithm = Literal[
    "ec-p256", "ec-p384", "ec-p521", "rsa-2048", "rsa-3072", "rsa-4096", "ed25519"
]
"""Kind and size of a key pair."""

KEY_ALGORITHMS: tuple[KeyAlgorithm, ...] = get_args(KeyAlgorithm)

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

_GENERATE: dict[str, Callable[[], PrivateKey]] = {
    "ec-p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ec-p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ec-p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-3072": lambda: rsa.generate_private_key(65537, 3072),
    "rsa-4096": lambda: rsa.generate_private_key(65537, 4096),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def generate_key(algorithm: KeyAlgorithm = "ec-p256") -> PrivateKey:
    """Makes a key pair.

    Raises:
        InvalidArgument: There is no such algorithm.
    """
    check_algorithm(algorithm)
    return _GENERATE[algorithm]()


def check_algorithm(algorithm: str) -> None:
    """Refuses what is not the name of an algorithm.

    Raises:
        InvalidArgument: There is no such algorithm.
    """
    if algorithm not in _GENERATE:
        raise InvalidArgument(
            f"there is no key algorithm {algorithm!r}: use one of {', '.join(KEY_ALGORITHMS)}"
        )


def private_key_pem(key: PrivateKey) -> str:
    """The key as PKCS#8 (RFC 5958), PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


def make_csr(
    key: PrivateKey,
    *,
    common_name: str = "",
    dns_names: Sequence[str] = (),
    ip_addresses: Sequence[str] = (),
    uris: Sequence[str] = (),
    email_addresses: Sequence[str] = (),
) -> x509.CertificateSigningRequest:
    """Makes a CSR (PKCS#10, RFC 2986) signed with the key.

    Without any name it has an empty subject and no extension: a role for
    X509-SVIDs then fills in the caller's own SPIFFE ID.

    Raises:
        InvalidArgument: Names that a CSR cannot hold, with a violation each.
    """
    violations: list[Violation] = []
    names: list[x509.GeneralName] = []
    for field, make, texts in (
        ("dns_names", x509.DNSName, dns_names),
        ("ip_addresses", _ip_address, ip_addresses),
        ("uris", x509.UniformResourceIdentifier, uris),
        ("email_addresses", x509.RFC822Name, email_addresses),
    ):
        for index, text in enumerate(texts):
            try:
                names.append(make(text))
            except ValueError:
                violations.append(Violation(f"names.{field}[{index}]", _cannot_hold(field, text)))
    subject = []
    if common_name:
        try:
            subject.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
        except ValueError:
            violations.append(
                Violation("names.common_name", "a common name has 1 to 64 characters")
            )
    if violations:
        raise InvalidArgument("the names do not fit into a CSR", violations=violations)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else _hash(key))


def _hash(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> hashes.SHA256 | hashes.SHA384 | hashes.SHA512:
    # As strong as the curve (RFC 5480 section 4); SHA-256 for RSA.
    size = key.key_size if isinstance(key, ec.EllipticCurvePrivateKey) else 0
    if size > 384:
        return hashes.SHA512()
    return hashes.SHA384() if size > 256 else hashes.SHA256()


def _ip_address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


def _cannot_hold(field: str, text: str) -> str:
    if field == "ip_addresses":
        return f"{text!r} is not an IPv4 or IPv6 address"
    if field == "dns_names":
        return f"{text!r} is not in ASCII: give internationalised names as A-labels (xn--…)"
    return f"{text!r} is not in ASCII"
