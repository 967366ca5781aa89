"""The keys under which this worker answers OCSP requests, and their certificates.

A key lives in the memory of one worker for as long as its certificate, and is
written nowhere. What is issued here no role can grant: id-kp-OCSPSigning, and by
issuers that sign nothing else any more or nothing yet.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshmint_server.audit import Origin
from meshmint_server.authority import Issuer, IssuerBook
from meshmint_server.authority.ocsp import RESPONDER_ROLE, Delegate
from meshmint_server.errors import MeshmintError
from meshmint_server.issuance.deadline import Deadline
from meshmint_server.issuance.mint import Mint
from meshmint_server.policy import Caller, Decision, Grant
from meshmint_server.policy.usages import build_key_usage

__all__ = ["ResponderCertificates"]

log = structlog.get_logger(__name__)

_CALLER = Caller(
    authenticator="meshmint",
    subject=RESPONDER_ROLE,
    attributes={},
    spiffe_id=None,
    expires_at=datetime.max.replace(tzinfo=UTC),
)
# For verifiers whose clock is behind; what roles have by default.
_BACK_DATING = timedelta(seconds=30)
_TIME_LIMIT = 10.0
_RETRY_SECONDS = 5.0
_LONGEST_COMMON_NAME = 64


class ResponderCertificates:
    """Keeps a delegate for every published issuer.

    Args:
        mint: The one path that every certificate takes.
        issuers: Who is to be answered for.
        appoint: Takes every new delegate.
        lifetime: Of a certificate; shorter where the issuer ends first.
        clock: The present, UTC.
    """

    def __init__(
        self,
        mint: Mint,
        issuers: IssuerBook,
        appoint: Callable[[Delegate], None],
        *,
        lifetime: timedelta,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._mint = mint
        self._issuers = issuers
        self._appoint = appoint
        self._lifetime = lifetime
        self._clock = clock
        self._delegates: dict[str, Delegate] = {}
        self._retry_at: dict[str, float] = {}

    async def renew(self) -> None:
        """Makes every delegate that is missing, or is past two thirds of its time.

        What fails is said in the log, and tried again some seconds later.
        """
        now = self._clock()
        await asyncio.gather(
            *(
                self._replace(issuer)
                for issuer in self._issuers.published()
                if self._is_due(issuer, now)
            )
        )

    async def follow(self, interval: float) -> None:
        """Renews for ever, looking every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            await self.renew()

    def _is_due(self, issuer: Issuer, now: datetime) -> bool:
        if now >= issuer.not_after or time.monotonic() < self._retry_at.get(issuer.name, 0):
            return False
        delegate = self._delegates.get(issuer.name)
        if delegate is None or not delegate.may_answer_for(issuer.certificate, now):
            return True
        start = delegate.certificate.not_valid_before_utc
        end = delegate.certificate.not_valid_after_utc
        # Shortened to its issuer's end, it has nothing to gain from a renewal.
        return now >= start + (end - start) * 2 / 3 and end < issuer.not_after

    async def _replace(self, issuer: Issuer) -> None:
        try:
            delegate = await self._make(issuer)
        except MeshmintError as error:
            self._retry_at[issuer.name] = time.monotonic() + _RETRY_SECONDS
            log.warning(
                "no certificate for an OCSP responder; it is tried again",
                issuer=issuer.name,
                reason=error.reason,
            )
        else:
            self._delegates[issuer.name] = delegate
            self._appoint(delegate)

    async def _make(self, issuer: Issuer) -> Delegate:
        key = ec.generate_private_key(ec.SECP256R1())
        now = self._clock()
        issued = await self._mint.issue_decided(
            _decide(issuer, key.public_key(), now, self._lifetime),
            issuer,
            _CALLER,
            now=now,
            origin=Origin(uuid.uuid4().hex, "self", "self"),
            deadline=Deadline.after(_TIME_LIMIT),
        )
        certificate = x509.load_pem_x509_certificate(issued.certificate_pem.encode("ascii"))
        return Delegate(issuer.name, issuer.certificate, certificate, key)


def _decide(
    issuer: Issuer, public_key: ec.EllipticCurvePublicKey, now: datetime, lifetime: timedelta
) -> Decision:
    """What a delegated responder's certificate is (RFC 6960 section 4.2.2.2)."""
    common_name = f"Meshmint OCSP responder for {issuer.name}"[:_LONGEST_COMMON_NAME]
    start = now.replace(microsecond=0)
    grant = Grant(
        role=RESPONDER_ROLE,
        subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]),
        sans=(),
        spiffe_id=None,
        key_usage=build_key_usage(frozenset({"digital_signature"})),
        ext_key_usages=(ExtendedKeyUsageOID.OCSP_SIGNING,),
        policies=(),
        basic_constraints=True,
        issuer_ref=issuer.name,
        signature_bits=0,
        use_pss=False,
        is_recorded=True,
        warnings=(),
    )
    not_after = min(start + lifetime, issuer.not_after)
    return Decision(grant, public_key, start - _BACK_DATING, not_after, ())
