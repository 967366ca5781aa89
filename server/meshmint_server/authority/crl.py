"""CRLs as to-be-signed bytes (RFC 5280 section 5). Pure: no store, no key, no clock.

The lists of two shards of one issuer differ in scope, and say so in an issuing
distribution point, so that nobody takes the one for the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from meshmint_server.authority.issuers import Issuer
from meshmint_server.authority.locations import crl_path, distribution_point
from meshmint_server.keys import SignatureAlgorithm, ToBeSigned, capture
from meshmint_server.store import CrlKind, RevokedSerial

__all__ = ["CrlFrame", "build_crl", "crl_entries"]

# RFC 5280 section 5.3.1: unspecified (0) is said by saying nothing. What no certificate
# here can be revoked for (removeFromCRL) is not said either.
_REASONS: Final[dict[int, list[x509.Extension[x509.ExtensionType]]]] = {
    code: [x509.Extension(x509.CRLReason.oid, False, x509.CRLReason(flag))]
    for code, flag in {
        1: x509.ReasonFlags.key_compromise,
        2: x509.ReasonFlags.ca_compromise,
        3: x509.ReasonFlags.affiliation_changed,
        4: x509.ReasonFlags.superseded,
        5: x509.ReasonFlags.cessation_of_operation,
        6: x509.ReasonFlags.certificate_hold,
        9: x509.ReasonFlags.privilege_withdrawn,
        10: x509.ReasonFlags.aa_compromise,
    }.items()
}


@dataclass(frozen=True, slots=True)
class CrlFrame:
    """A CRL without its entries.

    Attributes:
        number: CRL number (RFC 5280 section 5.2.3).
        base_number: Of a delta, the number of the full CRL that it builds on.
        this_update: When it is made, to the second.
        next_update: When a newer one is there at the latest, to the second.
        url: Base URL under which the issuer's CRLs are; None if nobody was told.
        has_delta: Whether a full one names the place of its delta.
    """

    number: int
    base_number: int | None
    this_update: datetime
    next_update: datetime
    url: str | None
    has_delta: bool


def crl_entries(revoked: Iterable[RevokedSerial]) -> list[x509.RevokedCertificate]:
    """What a CRL says of revoked certificates: number, date and reason (section 5.3)."""
    return [
        x509.RevokedCertificateBuilder(
            int(one.serial_number, 16), one.revoked_at, _REASONS.get(one.reason, [])
        ).build()
        for one in revoked
    ]


def build_crl(
    issuer: Issuer,
    shard: int,
    frame: CrlFrame,
    entries: Sequence[x509.RevokedCertificate],
    algorithm: SignatureAlgorithm,
) -> ToBeSigned:
    """A full CRL, or a delta if the frame has a base. Takes seconds for a million entries.

    Args:
        issuer: Who will sign.
        shard: Which of the issuer's CRLs it is.
        frame: What it says of itself.
        entries: What it lists.
        algorithm: How the issuer's key will sign.
    """
    builder = (
        # All at once: adding them one by one copies the list each time.
        x509.CertificateRevocationListBuilder(revoked_certificates=list(entries))
        .issuer_name(issuer.certificate.subject)
        .last_update(frame.this_update)
        .next_update(frame.next_update)
    )
    for extension, critical in _extensions(issuer, shard, frame):
        builder = builder.add_extension(extension, critical)
    return capture(
        lambda key, hash_, padding: builder.sign(key, hash_, rsa_padding=padding),
        issuer.key.public_key,
        algorithm,
    )


def _extensions(
    issuer: Issuer, shard: int, frame: CrlFrame
) -> list[tuple[x509.ExtensionType, bool]]:
    """The extensions and whether each is critical, in the order of RFC 5280 section 5.2."""
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (issuer.authority_key_identifier, False),
        (x509.CRLNumber(frame.number), False),
    ]
    if frame.base_number is not None:
        extensions.append((x509.DeltaCRLIndicator(frame.base_number), True))
    if issuer.crl_shards > 1 and frame.url is not None:
        # The delta's too: both have one scope (section 5.2.4).
        extensions.append(
            (_issuing_distribution_point(frame.url + crl_path(issuer.name, shard)), True)
        )
    if frame.base_number is None and frame.has_delta and frame.url is not None:
        delta = frame.url + crl_path(issuer.name, shard, CrlKind.DELTA)
        extensions.append((x509.FreshestCRL([distribution_point(delta)]), False))
    return extensions


def _issuing_distribution_point(url: str) -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(url)],
        relative_name=None,
        only_contains_user_certs=True,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
