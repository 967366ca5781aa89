"""What is wrong with an issuer as it is kept, and how long it lasts: for `meshmintd doctor`.

The same rules as at import, applied to what the store gives back. Pure: the time
comes as an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server.authority.fitness import faults_of_path
from meshmint_server.authority.material import read_certificates
from meshmint_server.authority.path import BrokenPath, find_path, is_self_signed, shown
from meshmint_server.errors import InvalidRequest
from meshmint_server.keys import public_key_info
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow

__all__ = ["Examination", "Expiry", "examine_issuer", "expiry_of"]

# Warned of below this share of the lifetime, or this time, whichever is less.
_SHARE: Final = 0.2
_MARGIN: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Expiry:
    """How long a certificate lasts.

    Attributes:
        name: Its subject, quoted.
        left: From now to its end; not positive once it has expired.
        is_near: Whether it is time to replace it, or past that.
    """

    name: str
    not_before: datetime
    not_after: datetime
    left: timedelta
    is_near: bool

    @property
    def is_over(self) -> bool:
        """Whether it has expired."""
        return self.left < timedelta(0)


@dataclass(frozen=True, slots=True)
class Examination:
    """What an examination found.

    Attributes:
        faults: Why the issuer is not fit, one sentence each.
        warnings: What its operator should know.
        expiry: Of the certificate of its chain, root included, that ends first; None if
            that cannot be read.
    """

    faults: tuple[str, ...]
    warnings: tuple[str, ...]
    expiry: Expiry | None


def expiry_of(certificate: x509.Certificate, now: datetime) -> Expiry:
    """How long a certificate lasts."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    left = ends - now
    margin = min((ends - begins) * _SHARE, _MARGIN)
    return Expiry(shown(certificate), begins, ends, left, left < margin)


def examine_issuer(
    row: IssuerRow, certificate: bytes, trust_domain: TrustDomain, now: datetime
) -> Examination:
    """Examines an issuer with its chain up to the root.

    Args:
        row: As the store gives it.
        certificate: Its certificate, DER.
        trust_domain: Whose SPIFFE IDs it signs.
        now: The present.
    """
    try:
        own, *above = read_certificates([certificate, *row.chain, *row.roots])
    except InvalidRequest as error:
        return Examination((error.message,), (), None)
    expiries = [expiry_of(one, now) for one in (own, *above)]
    faults = []
    if public_key_info(own.public_key()) != row.public_key:  # type: ignore[arg-type]
        faults.append(f"{shown(own)} is not the certificate of this issuer's key.")
    try:
        path = find_path(own, above)
    except BrokenPath as broken:
        faults.append(str(broken))
        faults += [
            f"{one.name} expired at {one.not_after:%Y-%m-%dT%H:%M:%SZ}."
            for one in expiries
            if one.is_over
        ]
    else:
        faults += faults_of_path(path, trust_domain, now)
        if tuple(one.public_bytes(Encoding.DER) for one in path.chain) != row.chain:
            faults.append("The chain is not kept in order, nearest to the issuer first.")
    warnings = []
    if is_self_signed(own):
        warnings.append(f"{shown(own)} is self-signed: it is its own root, with its key online.")
    return Examination(tuple(faults), tuple(warnings), min(expiries, key=lambda one: one.not_after))
