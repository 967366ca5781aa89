"""CRLs as to-be-signed bytes (RFC 5280 section 5). Pure: no store, no key, no clock.

The lists of two shards of one issuer differ in scope, and say so in an issuing
distribution point, so that nobody takes the one for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from meshmint_server.authority.issuers import Issuer
from meshmint_server.authority.locations import crl_path, distribution_point
from meshmint_server.keys import SignatureAlgorithm, ToBeSigned, capture, der_length
from meshmint_server.store import CrlKind

__all__ = ["CrlFrame", "build_crl"]

_SEQUENCE = 0x30
_TAGGED_0 = 0xA0


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


def build_crl(
    issuer: Issuer,
    shard: int,
    frame: CrlFrame,
    entries: Sequence[bytes],
    algorithm: SignatureAlgorithm,
) -> ToBeSigned:
    """A full CRL, or a delta if the frame has a base.

    Args:
        issuer: Who will sign.
        shard: Which of the issuer's CRLs it is.
        frame: What it says of itself.
        entries: What it lists, in parts: see `encode_entries`.
        algorithm: How the issuer's key will sign.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(frame.this_update)
        .next_update(frame.next_update)
    )
    for extension, critical in _extensions(issuer, shard, frame):
        builder = builder.add_extension(extension, critical)
    empty = capture(
        lambda key, hash_, padding: builder.sign(key, hash_, rsa_padding=padding),
        issuer.key.public_key,
        algorithm,
    )
    return empty._replace(data=_listing(empty.data, entries)) if any(entries) else empty


def _listing(empty: bytes, entries: Sequence[bytes]) -> bytes:
    """The TBSCertList of an empty CRL with its entries: before the extensions, its last part."""
    _, start, end = _element_at(empty, 0)
    before = start
    while empty[before] != _TAGGED_0:
        _, _, before = _element_at(empty, before)
    size = sum(map(len, entries))
    parts = (
        empty[start:before],
        bytes((_SEQUENCE,)),
        der_length(size),
        *entries,
        empty[before:end],
    )
    return b"".join((bytes((_SEQUENCE,)), der_length(sum(map(len, parts))), *parts))


def _element_at(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of a DER element of ours, and where its content begins and ends."""
    length, start = der[at + 1], at + 2
    if length >= 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[at + 2 : start], "big")
    return der[at], start, start + length


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
