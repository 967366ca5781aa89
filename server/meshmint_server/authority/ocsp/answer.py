"""Answers: what is said of one certificate, signed with a delegated key. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from meshmint_server.authority.ocsp.request import HASHES, OcspRequest

__all__ = [
    "MALFORMED_REQUEST",
    "RESPONDER_ROLE",
    "TRY_LATER",
    "UNAUTHORIZED",
    "Answer",
    "Delegate",
    "Revocation",
    "sign_answer",
]

# With a colon, which no role's name has: nobody can put a role in its place.
RESPONDER_ROLE = "meshmint:ocsp-responder"

_REASONS = {
    1: x509.ReasonFlags.key_compromise,
    2: x509.ReasonFlags.ca_compromise,
    3: x509.ReasonFlags.affiliation_changed,
    4: x509.ReasonFlags.superseded,
    5: x509.ReasonFlags.cessation_of_operation,
    6: x509.ReasonFlags.certificate_hold,
    9: x509.ReasonFlags.privilege_withdrawn,
    10: x509.ReasonFlags.aa_compromise,
}


@dataclass(frozen=True, slots=True)
class Delegate:
    """A key in memory that may answer for one issuer (RFC 6960 section 4.2.2.2).

    Attributes:
        issuer: The issuer's name.
        issuer_certificate: The certificate under which it is delegated.
        certificate: Signed by the issuer, with id-kp-OCSPSigning.
        key: Its private key.
    """

    issuer: str
    issuer_certificate: x509.Certificate
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def may_answer_for(self, issuer_certificate: x509.Certificate, now: datetime) -> bool:
        """Whether verifiers of that issuer's certificates would take its word now."""
        return (
            self.issuer_certificate == issuer_certificate
            and self.certificate.not_valid_before_utc <= now < self.certificate.not_valid_after_utc
        )


@dataclass(frozen=True, slots=True)
class Revocation:
    """When and why a certificate was revoked.

    Attributes:
        reason: CRLReason (RFC 5280 section 5.3.1).
    """

    at: datetime
    reason: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An OCSP response.

    Attributes:
        document: DER.
        outcome: ``good``, ``revoked``, ``unknown``, or the error that it tells.
        this_update: When what it says was known to be so; of an error: None.
        next_update: When it is to be asked for again at the latest; of an error: None.
        fresh_until: Until when it may be given to others who ask the same; None: to nobody
            else, for it has a nonce, or may be otherwise in a moment.
    """

    document: bytes
    outcome: str
    this_update: datetime | None = None
    next_update: datetime | None = None
    fresh_until: datetime | None = None

    def is_fresh_at(self, now: datetime) -> bool:
        """Whether it may be given to others; not if the clock was set back before it."""
        return (
            self.this_update is not None
            and self.fresh_until is not None
            and self.this_update <= now < self.fresh_until
        )


def _error(status: ocsp.OCSPResponseStatus) -> Answer:
    response = ocsp.OCSPResponseBuilder.build_unsuccessful(status)
    return Answer(response.public_bytes(Encoding.DER), status.name.lower())


# RFC 6960 section 2.3: unsigned, so they say nothing that anybody could rely on.
MALFORMED_REQUEST = _error(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
TRY_LATER = _error(ocsp.OCSPResponseStatus.TRY_LATER)
UNAUTHORIZED = _error(ocsp.OCSPResponseStatus.UNAUTHORIZED)


def sign_answer(
    request: OcspRequest,
    outcome: str,
    revocation: Revocation | None,
    delegate: Delegate,
    *,
    this_update: datetime,
    next_update: datetime,
    fresh_until: datetime | None,
) -> Answer:
    """Answers a request.

    Args:
        request: What was asked; its nonce is sent back.
        outcome: ``good``, ``revoked`` or ``unknown``.
        revocation: Of a certificate that is revoked.
        delegate: Who signs: of the issuer that was asked about.
        this_update: UTC, whole seconds; also when it was made.
        next_update: UTC. It and `fresh_until` are shortened to the end of the delegate's
            certificate, past which nobody could verify the answer.
        fresh_until: As in Answer.
    """
    end = delegate.certificate.not_valid_after_utc
    next_update = min(next_update, end)
    if fresh_until is not None:
        fresh_until = min(fresh_until, end)
    issuer = request.issuer
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response_by_hash(
            issuer_name_hash=issuer.name_hash,
            issuer_key_hash=issuer.key_hash,
            serial_number=request.serial_number,
            algorithm=HASHES[issuer.algorithm],
            cert_status=ocsp.OCSPCertStatus[outcome.upper()],
            this_update=this_update,
            next_update=next_update,
            revocation_time=None if revocation is None else revocation.at,
            # RFC 5280 section 5.3.1: "unspecified" is told by leaving it out.
            revocation_reason=None if revocation is None else _REASONS.get(revocation.reason),
        )
        .responder_id(ocsp.OCSPResponderEncoding.HASH, delegate.certificate)
        .certificates([delegate.certificate])
    )
    if request.nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(request.nonce), critical=False)
    document = builder.sign(delegate.key, hashes.SHA256()).public_bytes(Encoding.DER)
    return Answer(document, outcome, this_update, next_update, fresh_until)
