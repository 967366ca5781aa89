"""Turns a decision into the bytes to be signed, for one issuer and one key.

What is built here is exactly what the decision says plus what RFC 5280 asks of
an issuer: nothing comes from the request.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshmint_server.authority import Issuer, shard_of
from meshmint_server.errors import IssuerExpired
from meshmint_server.issuance.template import Template, Templates
from meshmint_server.keys import SignatureAlgorithm, ToBeSigned, capture, default_algorithm
from meshmint_server.policy import Decision, Grant, PublicKey

__all__ = ["Prepared", "prepare"]

# RFC 5280 section 4.1.2.2: positive, at most 20 octets. The seconds fill 5 of them.
_SERIAL_RANDOM_BITS = 120


class Prepared(NamedTuple):
    """A to-be-signed certificate; only what `prepare` returned is ever signed.

    Attributes:
        to_be_signed: The TBSCertificate and its algorithm identifier.
        algorithm: How the issuer's key signs it.
        serial_number: The time, then random bits; never zero.
        issuer: Who signs.
    """

    to_be_signed: ToBeSigned
    algorithm: SignatureAlgorithm
    serial_number: int
    issuer: Issuer


def serial_number(now: datetime) -> int:
    """An unpredictable positive serial number (RFC 5280 section 4.1.2.2).

    It begins with the time, so that the store's index of serial numbers grows at its end
    instead of everywhere; the certificate tells when it was made anyway.
    """
    return (int(now.timestamp()) << _SERIAL_RANDOM_BITS) | secrets.randbits(_SERIAL_RANDOM_BITS)


def prepare(
    decision: Decision,
    issuer: Issuer,
    public_key: PublicKey,
    now: datetime,
    templates: Templates | None = None,
) -> Prepared:
    """Makes the certificate that the decision grants, unsigned.

    Args:
        decision: What it says.
        issuer: Who will sign it.
        public_key: The subject's key.
        now: The present, UTC.
        templates: Where the like was made before, so that it need not be built anew.

    Raises:
        IssuerExpired: The issuer's chain has ended or would end before the
            certificate does; it never signs past its own expiry.
    """
    if now >= issuer.not_after:
        raise IssuerExpired(
            f"The issuer {issuer.name!r} or its chain expired at "
            f"{issuer.not_after:%Y-%m-%d %H:%M:%SZ}. An operator must import a new certificate "
            "(meshmintd ca import)."
        )
    if decision.not_after > issuer.not_after:
        raise IssuerExpired(
            f"The certificate would outlive its issuer {issuer.name!r}, whose chain ends at "
            f"{issuer.not_after:%Y-%m-%d %H:%M:%SZ}. Ask for a shorter lifetime.",
            reason="ISSUER_EXPIRES_FIRST",
        )
    grant, serial = decision.grant, serial_number(now)
    algorithm = default_algorithm(
        issuer.key.public_key, grant.signature_bits, use_pss=grant.use_pss
    )
    shard = shard_of(serial, issuer.crl_shards)
    template = None if templates is None else templates.find(grant, issuer, shard)
    if template is not None:
        filled = template.fill(serial, decision.not_before, decision.not_after, public_key)
        return Prepared(filled, algorithm, serial, issuer)
    built = _build(decision, issuer, public_key, serial, algorithm)
    if templates is not None and grant.is_small:
        templates.keep(grant, issuer, shard, Template(built))
    return Prepared(built, algorithm, serial, issuer)


def _build(
    decision: Decision,
    issuer: Issuer,
    public_key: PublicKey,
    serial: int,
    algorithm: SignatureAlgorithm,
) -> ToBeSigned:
    builder = x509.CertificateBuilder(
        issuer_name=issuer.certificate.subject,
        subject_name=decision.grant.subject,
        public_key=public_key,
        serial_number=serial,
        not_valid_before=decision.not_before,
        not_valid_after=decision.not_after,
        extensions=[
            x509.Extension(extension.oid, critical, extension)
            for extension, critical in _extensions(decision.grant, issuer, public_key, serial)
        ],
    )
    return capture(
        lambda key, hash_, padding: builder.sign(key, hash_, rsa_padding=padding),
        issuer.key.public_key,
        algorithm,
    )


def _extensions(
    grant: Grant, issuer: Issuer, public_key: PublicKey, serial: int
) -> list[tuple[x509.ExtensionType, bool]]:
    """The extensions and whether each is critical, in RFC 5280's order of sections."""
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (issuer.authority_key_identifier, False),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
    ]
    if grant.key_usage is not None:
        extensions.append((grant.key_usage, True))
    if grant.policies:
        extensions.append((x509.CertificatePolicies(grant.policies), False))
    if grant.sans:
        # RFC 5280 section 4.1.2.6: critical when the subject is empty.
        is_critical = not grant.subject.rdns
        extensions.append((x509.SubjectAlternativeName(grant.sans), is_critical))
    if grant.basic_constraints:
        extensions.append((x509.BasicConstraints(ca=False, path_length=None), True))
    if grant.ext_key_usages:
        extensions.append((x509.ExtendedKeyUsage(grant.ext_key_usages), False))
    if ExtendedKeyUsageOID.OCSP_SIGNING in grant.ext_key_usages:
        # RFC 6960 section 4.2.2.2.1: nobody is to ask whether a responder is revoked, and so
        # it does not say where one could.
        extensions.append((x509.OCSPNoCheck(), False))
    else:
        extensions += [(location, False) for location in issuer.locations_for(serial)]
    return extensions
