"""Whether a certificate is the one that was asked for.

Guards against a server that mixes up answers, not against one that lies: the
trust bundle comes over the same connection, which TLS vouches for. This is not
the whole path validation of RFC 5280 section 6 (no name constraints, no
policies); a peer that accepts the certificate does that.

Everything here raises, and returns nothing to forget about.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshmint.errors import AnswerRefused

__all__ = ["check_chain", "check_public_key", "check_spiffe_id", "order_chain", "spiffe_id_of"]

_SPIFFE = "spiffe://"


def check_public_key(certificate: x509.Certificate, expected: PublicKeyTypes) -> None:
    """Refuses a certificate for somebody else's key.

    Raises:
        AnswerRefused: It is for another key.
    """
    if _spki(certificate.public_key()) != _spki(expected):
        raise AnswerRefused("the certificate in the answer is for another public key than ours")


def check_spiffe_id(certificate: x509.Certificate, told: str, asked: str | None) -> None:
    """Refuses a certificate whose SPIFFE ID is not what was told or asked.

    Raises:
        AnswerRefused: It has none, several, or another one; or it is a CA.
    """
    found = spiffe_id_of(certificate)
    if not found:
        raise AnswerRefused("the certificate in the answer has no SPIFFE ID: it is no X509-SVID")
    if found != told:
        raise AnswerRefused(f"the certificate carries {found}, and the answer says {told!r}")
    if asked is not None and found != asked:
        raise AnswerRefused(f"the certificate carries {found}, and {asked} was asked for")
    if _is_ca(certificate):
        raise AnswerRefused("the certificate in the answer is a CA certificate, not an X509-SVID")


def check_chain(
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    *,
    now: datetime | None = None,
) -> None:
    """Follows the signatures from a leaf up to one of the roots.

    Args:
        certificate: The leaf.
        chain: The leaf's issuer first, then upwards, root left out.
        roots: The trust bundle.
        now: If given, every certificate up to the root must be valid then.

    Raises:
        AnswerRefused: A link does not hold; the message says which.
    """
    if not roots:
        raise AnswerRefused("there is no trust bundle to check the certificate against")
    path = [certificate, *chain]
    for depth, (child, parent) in enumerate(itertools.pairwise(path)):
        _check_link(child, parent, depth)
    top = path[-1]
    if top not in roots:
        root = next((r for r in roots if r.subject == top.issuer and _has_signed(r, top)), None)
        if root is None:
            raise AnswerRefused(
                f"{_name(top)} is not signed by any root of the trust bundle: "
                f"its issuer is {top.issuer.rfc4514_string()!r}"
            )
        _check_may_sign(root, len(path) - 1)
        path.append(root)
    if now is not None:
        for link in path:
            if not link.not_valid_before_utc <= now <= link.not_valid_after_utc:
                raise AnswerRefused(
                    f"{_name(link)} is valid from {link.not_valid_before_utc:%Y-%m-%d %H:%M:%S}Z "
                    f"to {link.not_valid_after_utc:%Y-%m-%d %H:%M:%S}Z, and not now"
                )


def order_chain(
    certificate: x509.Certificate, others: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """Picks from certificates in any order those that lead upwards from a leaf."""
    path = [certificate]
    left = [other for other in others if other != certificate]
    while above := next(
        (o for o in left if o.subject == path[-1].issuer and _has_signed(o, path[-1])), None
    ):
        left.remove(above)
        path.append(above)
    return path[1:]


def spiffe_id_of(certificate: x509.Certificate) -> str:
    """The SPIFFE ID of an X509-SVID; empty if the certificate is none.

    An X509-SVID has exactly one URI among its SANs, and that is its SPIFFE ID
    (X509-SVID standard, section 2).
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0] if len(uris) == 1 and uris[0].startswith(_SPIFFE) else ""


def _check_link(child: x509.Certificate, parent: x509.Certificate, depth: int) -> None:
    if child.issuer != parent.subject or not _has_signed(parent, child):
        raise AnswerRefused(
            f"{_name(child)} is not signed by the next in its chain, {_name(parent)}"
        )
    _check_may_sign(parent, depth)


def _check_may_sign(ca: x509.Certificate, below: int) -> None:
    """Checks basicConstraints and keyUsage (RFC 5280 sections 4.2.1.9, 4.2.1.3)."""
    if not _is_ca(ca):
        raise AnswerRefused(f"{_name(ca)} is not a CA certificate")
    limit = ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    if limit is not None and below > limit:
        raise AnswerRefused(f"{_name(ca)} allows {limit} CAs below it, and there are {below}")
    try:
        usage = ca.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not usage.key_cert_sign:
        raise AnswerRefused(f"{_name(ca)} may not sign certificates")


def _has_signed(parent: x509.Certificate, child: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _name(certificate: x509.Certificate) -> str:
    return repr(certificate.subject.rfc4514_string() or spiffe_id_of(certificate) or "the leaf")


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
