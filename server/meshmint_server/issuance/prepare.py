"""Turns a decision into the bytes to be signed, for one issuer and one key.

What is built here is exactly what the decision says plus what RFC 5280 asks of
an issuer: nothing comes from the request.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshmint_server.authority import Issuer
from meshmint_server.errors import IssuerExpired
from meshmint_server.keys import SignatureAlgorithm, ToBeSigned, capture, default_algorithm
from meshmint_server.policy import Decision, PublicKey

__all__ = ["Prepared", "prepare"]

# RFC 5280 section 4.1.2.2: positive, at most 20 octets. 159 random bits.
_SERIAL_BITS = 159


@dataclass(frozen=True, slots=True)
class Prepared:
    """A to-be-signed certificate; only what `prepare` returned is ever signed.

    Attributes:
        to_be_signed: The TBSCertificate and its algorithm identifier.
        algorithm: How the issuer's key signs it.
        serial_number: Random, never zero.
        issuer: Who signs.
        decision: What it was made from.
        public_key: The subject's key.
    """

    to_be_signed: ToBeSigned
    algorithm: SignatureAlgorithm
    serial_number: int
    issuer: Issuer
    decision: Decision
    public_key: PublicKey


def random_serial_number() -> int:
    """An unpredictable positive serial number (RFC 5280 section 4.1.2.2)."""
    while not (serial := secrets.randbits(_SERIAL_BITS)):
        pass  # pragma: no cover
    return serial


def prepare(decision: Decision, issuer: Issuer, public_key: PublicKey, now: datetime) -> Prepared:
    """Builds the certificate that the decision grants, unsigned.

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
    serial = random_serial_number()
    builder = x509.CertificateBuilder(
        issuer_name=issuer.certificate.subject,
        subject_name=decision.subject,
        public_key=public_key,
        serial_number=serial,
        not_valid_before=decision.not_before,
        not_valid_after=decision.not_after,
        extensions=[
            x509.Extension(extension.oid, critical, extension)
            for extension, critical in _extensions(decision, issuer, public_key, serial)
        ],
    )
    algorithm = default_algorithm(
        issuer.key.public_key, decision.signature_bits, use_pss=decision.use_pss
    )

    return Prepared(
        to_be_signed=capture(
            lambda key, hash_, padding: builder.sign(key, hash_, rsa_padding=padding),
            issuer.key.public_key,
            algorithm,
        ),
        algorithm=algorithm,
        serial_number=serial,
        issuer=issuer,
        decision=decision,
        public_key=public_key,
    )


def _extensions(
    decision: Decision, issuer: Issuer, public_key: PublicKey, serial: int
) -> list[tuple[x509.ExtensionType, bool]]:
    """The extensions and whether each is critical, in RFC 5280's order of sections."""
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (issuer.authority_key_identifier, False),
        (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
    ]
    if decision.key_usage is not None:
        extensions.append((decision.key_usage, True))
    if decision.policies:
        extensions.append((x509.CertificatePolicies(decision.policies), False))
    if decision.sans:
        # RFC 5280 section 4.1.2.6: critical when the subject is empty.
        is_critical = not decision.subject.rdns
        extensions.append((x509.SubjectAlternativeName(decision.sans), is_critical))
    if decision.basic_constraints:
        extensions.append((x509.BasicConstraints(ca=False, path_length=None), True))
    if decision.ext_key_usages:
        extensions.append((x509.ExtendedKeyUsage(decision.ext_key_usages), False))
    if ExtendedKeyUsageOID.OCSP_SIGNING in decision.ext_key_usages:
        # RFC 6960 section 4.2.2.2.1: nobody is to ask whether a responder is revoked, and so
        # it does not say where one could.
        extensions.append((x509.OCSPNoCheck(), False))
    else:
        extensions += [(location, False) for location in issuer.locations_for(serial)]
    return extensions
