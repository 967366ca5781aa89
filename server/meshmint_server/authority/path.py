"""From one certificate up to its root: the order, and whether each signed the next.

This says who issued whom. Whether they were allowed to is `fitness`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = [
    "BrokenPath",
    "Path",
    "anchor_of",
    "fault_of_signature",
    "find_path",
    "has_signed",
    "is_self_signed",
    "shown",
]

_BROKEN_HASHES = frozenset({"md5", "sha1"})
# Go and BoringSSL, and so Envoy and Istio, verify no others.
_KNOWN_HASHES = frozenset({"sha256", "sha384", "sha512"})


class BrokenPath(Exception):
    """There is no unbroken path from the certificate to a root; the message says where it ends."""


@dataclass(frozen=True, slots=True)
class Path:
    """One issuer's certificate and everything above it.

    Attributes:
        certificate: The issuer's own.
        chain: Above it, nearest first, root left out.
        roots: The root; more than one when it was reissued with the same key.
        others: What was given besides and belongs to none of these.
    """

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]
    others: tuple[x509.Certificate, ...]

    @property
    def upwards(self) -> tuple[x509.Certificate, ...]:
        """Every certificate of the path, the issuer's own first, a self-signed one once."""
        above = (*self.chain, *self.roots)
        return above if self.certificate in above else (self.certificate, *above)


def find_path(certificate: x509.Certificate, given: Sequence[x509.Certificate]) -> Path:
    """Orders `given` above `certificate`.

    Raises:
        BrokenPath: An issuer is missing, or a signature does not hold.
    """
    if is_self_signed(certificate):
        others = tuple(one for one in given if one != certificate)
        return Path(certificate, (), (certificate,), others)
    remaining = [one for one in given if one != certificate]
    chain: list[x509.Certificate] = []
    below = certificate
    while True:
        issuers = _issuers_of(below, remaining)
        roots = [one for one in issuers if is_self_signed(one)]
        remaining = [one for one in remaining if one not in (roots or issuers[:1])]
        if roots:
            return Path(certificate, tuple(chain), tuple(roots), tuple(remaining))
        below = issuers[0]
        chain.append(below)


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Whether a certificate's own key signed it."""
    return certificate.subject == certificate.issuer and has_signed(certificate, certificate)


@lru_cache(maxsize=256)
def anchor_of(root: bytes) -> tuple[bytes, bytes]:
    """What verifiers trust of a root, DER: name and key (RFC 5280 section 6.1.1).

    A root that is issued anew with its key is the same anchor. One that cannot be read is one
    of its own.
    """
    try:
        certificate = x509.load_der_x509_certificate(root)
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return root, b""
    return certificate.subject.public_bytes(), key


def shown(certificate: x509.Certificate) -> str:
    """A certificate's subject, for a message."""
    return f"'{certificate.subject.rfc4514_string() or '(empty subject)'}'"


def has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether a certificate names this issuer, and was signed with its key."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def fault_of_signature(certificate: x509.Certificate) -> str | None:
    """Why nobody may rest on how a certificate is signed; None if all is well."""
    try:
        digest = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return f"{shown(certificate)} is signed with an algorithm that is not supported."
    if digest is None or digest.name in _KNOWN_HASHES:
        return None
    fault = "is broken" if digest.name in _BROKEN_HASHES else "many verifiers do not know"
    return f"{shown(certificate)} is signed with {digest.name.upper()}, which {fault}."


def _issuers_of(
    below: x509.Certificate, candidates: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    named = [one for one in candidates if one.subject == below.issuer]
    issuers = [one for one in named if has_signed(one, below)]
    if issuers:
        # Of two certificates for one key, the one that lasts longer.
        return sorted(issuers, key=lambda one: one.not_valid_after_utc, reverse=True)
    wanted = f"'{below.issuer.rfc4514_string()}', which issued {shown(below)}"
    if named:
        weakness = fault_of_signature(below)
        if weakness is not None:  # such a signature is not even looked at
            raise BrokenPath(weakness)
        raise BrokenPath(
            f"The signature on {shown(below)} does not verify with the certificate of "
            f"{wanted}: it is another key of the same name, or the certificate was changed."
        )
    raise BrokenPath(
        f"The certificate of {wanted}, is missing. Give every certificate up to and including "
        "the root."
    )
