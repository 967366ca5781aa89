"""Revokes certificates: who may, which certificate, and one row that is durable on return.

No CRL is built here and no OCSP answer made: they follow the row. A caller that
may not revoke a certificate is not told whether there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server import telemetry
from meshmint_server.audit import AuditLog, Origin, utc_text
from meshmint_server.authority import Issuer, IssuerBook, shard_of
from meshmint_server.authority.ocsp import RESPONDER_ROLE
from meshmint_server.errors import (
    InvalidRequest,
    IssuerNotReady,
    MeshmintError,
    NotFound,
    PermissionDenied,
    PreconditionFailed,
    Unavailable,
    Violation,
)
from meshmint_server.issuance.administrators import Administrators
from meshmint_server.issuance.possession import holds
from meshmint_server.issuance.presented import find_signer
from meshmint_server.issuance.reasons import RevocationReason
from meshmint_server.issuance.service_certificate import SERVICE_ROLE
from meshmint_server.issuance.turns import Turns
from meshmint_server.policy import Caller
from meshmint_server.store import RecordRow, RevocationRow, Store

__all__ = ["RevocationRequest", "Revoked", "Revoker"]

# Of the store's few connections to the database the others are for those who issue. And
# administrators do not stand in the line that everybody can make long.
_AT_ONCE = 1
_ADMINS_AT_ONCE = 2
_MOST_WAITING = 1000
# Of certificates that no caller was issued, whatever an authenticator is named.
_OWN_ROLES = frozenset({SERVICE_ROLE, RESPONDER_ROLE})


@dataclass(frozen=True, slots=True)
class RevocationRequest:
    """What is asked for.

    Attributes:
        target: The certificate's normal serial number, or the certificate itself.
        reason: Why.
        proof: A signature with the certificate's private key; empty without.
    """

    target: str | x509.Certificate
    reason: RevocationReason
    proof: bytes = b""

    @property
    def certificate(self) -> x509.Certificate | None:
        """The certificate, if it was presented."""
        return None if isinstance(self.target, str) else self.target

    @property
    def serial_number(self) -> str:
        """As it is kept: lower-case hexadecimal, no leading zeros."""
        return self.target if isinstance(self.target, str) else f"{self.target.serial_number:x}"


@dataclass(frozen=True, slots=True)
class Revoked:
    """What is on record after a request: its own revocation, or the one that was first."""

    revocation: RevocationRow
    already_revoked: bool


class Revoker:
    """Revokes certificates. One per worker process."""

    def __init__(
        self,
        *,
        admins: Administrators,
        store: Store,
        issuers: IssuerBook,
        audit: AuditLog,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._admins = admins
        self._store = store
        self._issuers = issuers
        self._audit = audit
        self._clock = clock
        self._turns = Turns(_AT_ONCE, _MOST_WAITING)
        self._admin_turns = Turns(_ADMINS_AT_ONCE, _MOST_WAITING)

    async def revoke(
        self, caller: Caller | None, read: Callable[[], RevocationRequest], origin: Origin
    ) -> Revoked:
        """Revokes a certificate for good, unless it is revoked already.

        Args:
            caller: Who asks. None: nobody in particular, and only a proof of possession
                counts.
            read: Reads what is asked for; raises InvalidRequest.
            origin: Where the request came from.

        Raises:
            PermissionDenied: The caller is neither an administrator nor the one that the
                certificate was issued to, or the proof does not hold. A certificate that
                is not on record gets the same answer as one of somebody else.
            InvalidRequest: The request is malformed, or about the certificate of a CA.
            NotFound: There is no such certificate, for those who may know.
            PreconditionFailed: It has expired, or its issuer is not published any more.
            Overloaded: Too many revocations are waiting.
        """
        request: RevocationRequest | None = None
        try:
            request = read()
            return await self._revoke(caller, request, origin)
        except MeshmintError as error:
            outcome = "failed" if isinstance(error, Unavailable) else "refused"
            telemetry.REVOCATIONS.labels(outcome).inc()
            self._audit.refused(
                origin,
                error,
                caller=None if caller is None else caller.subject,
                authenticator=None if caller is None else caller.authenticator,
                serial=None if request is None else request.serial_number,
            )
            raise

    async def _revoke(
        self, caller: Caller | None, request: RevocationRequest, origin: Origin
    ) -> Revoked:
        # In this order: a stranger's request costs a check of a signature, with the key of an
        # issuer of ours, and has something looked up in the store only if its proof holds.
        signer = None
        if request.certificate is not None:
            signer = await self._signer(request.certificate)
        if caller is None:
            _check_proof(request)
        is_admin = caller is not None and self._admins.include(caller)
        turns = self._admin_turns if is_admin else self._turns
        return await turns.run(
            lambda: self._settle(caller, request, origin, signer, is_admin=is_admin)
        )

    async def _settle(
        self,
        caller: Caller | None,
        request: RevocationRequest,
        origin: Origin,
        signer: Issuer | None,
        *,
        is_admin: bool,
    ) -> Revoked:
        """Decides by what is on record, and writes the row; once begun, it is ended.

        A client that hangs up now must not leave a revocation without its line in the log.
        """
        record, first = await self._store.look_up(request.serial_number)
        if caller is not None and not is_admin:
            _check_ownership(caller, record)
        _check_same(request.certificate, record)
        if first is None:
            row = await self._row(caller, request, origin, record, signer)
            return await self._write_down(row, origin)
        if signer is not None and first.issuer != signer.name:
            raise PreconditionFailed(
                f"A certificate of the issuer {first.issuer!r} with the same serial number is "
                "revoked, and only one can be.",
                reason="SERIAL_NUMBER_TAKEN",
            )
        return self._granted(_by(caller), first, origin, already_revoked=True)

    async def _signer(self, certificate: x509.Certificate) -> Issuer:
        try:
            return find_signer(certificate, self._issuers.published())
        except NotFound:
            await self._issuers.look_again()
            return find_signer(certificate, self._issuers.published())

    async def _row(
        self,
        caller: Caller | None,
        request: RevocationRequest,
        origin: Origin,
        record: RecordRow | None,
        signer: Issuer | None,
    ) -> RevocationRow:
        """The revocation to write, of a certificate that was presented or is on record."""
        issuer: Issuer | str
        if request.certificate is not None and signer is not None:
            issuer, not_after = signer, request.certificate.not_valid_after_utc
        elif record is not None:
            issuer, not_after = record.issuer, record.not_after
        else:
            raise NotFound(
                "There is no record of that serial number. Certificates of roles with no_store "
                "are not recorded: send the certificate itself."
            )
        now = self._clock()
        if not_after < now:
            raise PreconditionFailed(
                f"The certificate expired at {utc_text(not_after)}: nobody accepts it any more, "
                "and no CRL lists it.",
                reason="CERTIFICATE_EXPIRED",
            )
        if isinstance(issuer, str):
            issuer = await self._issuer(issuer)
        by = _by(caller)
        return RevocationRow(
            serial_number=request.serial_number,
            issuer=issuer.name,
            shard=shard_of(int(request.serial_number, 16), issuer.crl_shards),
            reason=request.reason,
            revoked_at=now,
            not_after=not_after,
            authenticator=by.authenticator,
            caller=by.caller,
            request_id=origin.request_id,
        )

    async def _issuer(self, name: str) -> Issuer:
        with suppress(IssuerNotReady):
            return self._issuers.get(name)
        await self._issuers.look_again()
        try:
            return self._issuers.get(name)
        except IssuerNotReady:
            raise PreconditionFailed(
                f"The issuer {name!r} is not published any more: nobody trusts what it signed, "
                "and it has no CRL.",
                reason="ISSUER_NOT_PUBLISHED",
            ) from None

    async def _write_down(self, row: RevocationRow, origin: Origin) -> Revoked:
        stored = await self._store.revoke(row)
        # Another request may have been first, or this one's answer been lost on the way.
        already_revoked = stored.request_id != row.request_id
        by = _By(row.authenticator, row.caller)
        return self._granted(by, stored, origin, already_revoked=already_revoked)

    def _granted(
        self, by: _By, stored: RevocationRow, origin: Origin, *, already_revoked: bool
    ) -> Revoked:
        outcome = "already_revoked" if already_revoked else "revoked"
        telemetry.REVOCATIONS.labels(outcome).inc()
        self._audit.revoked(
            origin,
            caller=by.caller,
            authenticator=by.authenticator,
            serial=stored.serial_number,
            issuer=stored.issuer,
            reason=RevocationReason(stored.reason).name.lower(),
            already_revoked=already_revoked,
        )
        return Revoked(stored, already_revoked)


@dataclass(frozen=True, slots=True)
class _By:
    """Who revokes, as the store and the log have it."""

    authenticator: str
    caller: str


def _by(caller: Caller | None) -> _By:
    if caller is None:
        return _By("", "proof of possession")
    return _By(caller.authenticator, caller.subject)


def _check_proof(request: RevocationRequest) -> None:
    if request.certificate is None:
        raise InvalidRequest(
            "A proof of possession needs the certificate itself, not its serial number.",
            violations=[Violation("certificate", "set it instead of serial_number")],
        )
    if not holds(request.proof, request.certificate, request.reason):
        raise PermissionDenied(
            "The proof of possession does not hold. Sign what RevokeRequest describes, for this "
            "certificate and this reason, with the certificate's private key and SHA-256.",
            reason="PROOF_INVALID",
        )


def _check_ownership(caller: Caller, record: RecordRow | None) -> None:
    """Whether the certificate was issued to the caller; the service's own are nobody's."""
    if (
        record is not None
        and record.role not in _OWN_ROLES
        and (record.authenticator, record.caller) == (caller.authenticator, caller.subject)
    ):
        return
    # The same whether there is such a certificate or not.
    raise PermissionDenied(
        "There is no such certificate that this caller may revoke. An administrator may revoke "
        "every one, a caller those that were issued to it, and whoever has the private key "
        "proves it with proof_of_possession.",
        reason="REVOCATION_DENIED",
    )


def _check_same(certificate: x509.Certificate | None, record: RecordRow | None) -> None:
    if (
        certificate is not None
        and record is not None
        and certificate.public_bytes(Encoding.DER) != record.certificate
    ):
        raise NotFound(
            "This is not the certificate on record with its serial number. Send the one that "
            "was issued."
        )
