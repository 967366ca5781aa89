"""An issuer as `meshmintd ca show` shows it: parsed, ready to print, without any secret."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from meshmint_server.keys import key_algorithm_of, load_public_key
from meshmint_server.store import IssuerRow

__all__ = ["IssuerDescription", "describe"]


@dataclass(frozen=True, slots=True)
class IssuerDescription:
    """What is to be known of an issuer. None and () stand for: no certificate, or none that
    can be read.

    Attributes:
        algorithm: Kind of its key; None until that has been made.
        subject: RFC 4514, as the other names.
        serial_number: Lower-case hexadecimal.
        signs_until: When the first certificate of the chain expires; no leaf outlives it.
        fingerprint: SHA-256 of the certificate, lower-case hexadecimal.
        spiffe_id: The CA's own SPIFFE ID, if it has one.
        chain: Subjects above the certificate, nearest first, root left out.
        roots: Subjects of the roots.
    """

    name: str
    state: str
    key_uri: str
    algorithm: str | None
    created_at: datetime
    subject: str | None
    issuer: str | None
    serial_number: str | None
    not_before: datetime | None
    not_after: datetime | None
    signs_until: datetime | None
    fingerprint: str | None
    spiffe_id: str | None
    chain: tuple[str, ...]
    roots: tuple[str, ...]


def describe(row: IssuerRow) -> IssuerDescription:
    """Describes an issuer as it is kept."""
    try:
        own = None if row.certificate is None else x509.load_der_x509_certificate(row.certificate)
        chain = [x509.load_der_x509_certificate(der) for der in row.chain]
        roots = [x509.load_der_x509_certificate(der) for der in row.roots]
    except ValueError:  # damaged: 'doctor' says so, and the others can still be looked at
        own, chain, roots = None, [], []
    path = [one for one in (own, *chain, *roots) if one is not None]
    return IssuerDescription(
        name=row.name,
        state=row.state.value,
        key_uri=row.key_uri,
        algorithm=_algorithm(row),
        created_at=row.created_at,
        subject=None if own is None else own.subject.rfc4514_string(),
        issuer=None if own is None else own.issuer.rfc4514_string(),
        serial_number=None if own is None else f"{own.serial_number:x}",
        not_before=None if own is None else own.not_valid_before_utc,
        not_after=None if own is None else own.not_valid_after_utc,
        signs_until=min((one.not_valid_after_utc for one in path), default=None),
        fingerprint=None if own is None else own.fingerprint(hashes.SHA256()).hex(),
        spiffe_id=None if own is None else _spiffe_id(own),
        chain=tuple(one.subject.rfc4514_string() for one in chain),
        roots=tuple(one.subject.rfc4514_string() for one in roots),
    )


def _algorithm(row: IssuerRow) -> str | None:
    return key_algorithm_of(load_public_key(row.public_key)).value if row.has_key else None


def _spiffe_id(certificate: x509.Certificate) -> str | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return next((uri for uri in uris if uri.startswith("spiffe://")), None)
