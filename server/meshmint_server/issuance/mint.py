"""The one path every certificate takes: decide → prepare → sign → verify → record → reply.

No edge and no other room signs a certificate. Nothing is handed out before its
signature was verified and, unless the role says otherwise, its record is durable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from meshmint_server import telemetry
from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authority import Issuer, IssuerBook
from meshmint_server.errors import MeshmintError
from meshmint_server.issuance.admission import Admission
from meshmint_server.issuance.deadline import Deadline
from meshmint_server.issuance.issued import Issued
from meshmint_server.issuance.prepare import Prepared, prepare
from meshmint_server.issuance.retries import KEPT_FOR, Attempt, Outrun, Retries, Retryable
from meshmint_server.issuance.roles import RoleBook
from meshmint_server.issuance.signatures import sign_and_verify
from meshmint_server.issuance.subject_keys import SubjectKey, SubjectKeys, private_key_pem
from meshmint_server.issuance.template import Templates
from meshmint_server.policy import (
    Bounds,
    Caller,
    CertificateRequest,
    Decider,
    Decision,
    KeyAlgorithm,
    Role,
    choose_role,
    still_chosen,
)
from meshmint_server.store import RecordRow, Store

__all__ = ["Mint"]

# Looked up once: every certificate passes here.
_RECORDED = telemetry.STORE_SECONDS.labels("recorded").observe
_NOT_RECORDED = telemetry.STORE_SECONDS.labels("failed").observe


class Mint:
    """Issues certificates. One per worker process."""

    def __init__(
        self,
        *,
        roles: RoleBook,
        issuers: IssuerBook,
        store: Store,
        bounds: Bounds,
        audit: AuditLog,
        admission: Admission | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_key_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self._roles = roles
        self._issuers = issuers
        self._store = store
        self._bounds = bounds
        self._audit = audit
        self._admission = admission or Admission()
        self._clock = clock
        self._on_key_trouble = on_key_trouble
        self._subject_keys = SubjectKeys()
        self._decider = Decider()
        self._templates = Templates()
        self._retries = Retries(store, issuers, audit, clock)

    async def issue(
        self,
        caller: Caller,
        role_name: str,
        read: Callable[[], CertificateRequest],
        *,
        origin: Origin,
        deadline: Deadline,
        retryable: Retryable | None = None,
    ) -> Issued:
        """Decides about a request and, if it is granted, issues the certificate.

        Args:
            caller: Who asks.
            role_name: The role asked for; may be empty.
            read: Reads what is asked for; raises InvalidRequest. Called only for a
                caller who has the role: reading a CSR costs a signature check.
            origin: Where the request came from.
            deadline: When the client stops waiting.
            retryable: What the request is known by if it comes again. Of no use for a role
                with no_store, which keeps nothing: a certificate is made each time.

        Raises:
            MeshmintError: The request is refused, or cannot be served at
                present; nothing was handed out.
        """
        try:
            role = choose_role(self._roles.roles, caller, role_name)
            attempt = None if retryable is None else Attempt.of(caller, role.name, retryable)
            async with self._admission.enter(caller, role.name, deadline):
                role = still_chosen(self._roles.roles, caller, role)
                if attempt is None or role.no_store:
                    return await self.issue_under(
                        role, caller, read(), origin=origin, deadline=deadline
                    )
                async with deadline.limit():
                    issued = await self._retries.find(attempt, caller, origin)
                if issued is not None:
                    return issued
                try:
                    return await self.issue_under(
                        role, caller, read(), origin=origin, deadline=deadline, attempt=attempt
                    )
                except Outrun:
                    return await self._retries.find_winner(attempt, caller, origin)
        except MeshmintError as error:
            self._audit.refused(
                origin,
                error,
                caller=caller.subject,
                authenticator=caller.authenticator,
                role=role_name or None,
            )
            raise

    async def issue_under(
        self,
        role: Role,
        caller: Caller,
        request: CertificateRequest,
        *,
        origin: Origin,
        deadline: Deadline,
        bounds: Bounds | None = None,
        attempt: Attempt | None = None,
    ) -> Issued:
        """Issues under a role that was chosen already, within the usual bounds or others."""
        now = self._clock()
        decision = self._decider.decide(
            role, caller, request, now=now, bounds=bounds or self._bounds
        )
        issuer = self._issuers.signing(decision.grant.issuer_ref)
        return await self.issue_decided(
            decision, issuer, caller, now=now, origin=origin, deadline=deadline, attempt=attempt
        )

    async def issue_decided(
        self,
        decision: Decision,
        issuer: Issuer,
        caller: Caller,
        *,
        now: datetime,
        origin: Origin,
        deadline: Deadline,
        attempt: Attempt | None = None,
    ) -> Issued:
        """Issues what was decided, by an issuer in any state.

        For the service itself, which may decide what no role grants; no edge calls it.

        Raises:
            Outrun: Another attempt like `attempt` was recorded first.
        """
        grant = decision.grant
        subject_key: SubjectKey | None = None
        # Past this block the certificate is recorded, come what may: a deadline
        # that cut the recording short would leave it open whether it was minted.
        async with deadline.limit():
            if isinstance(decision.key, KeyAlgorithm):
                subject_key = await self._subject_keys.make(decision.key)
                public_key = subject_key.public_key()
            else:
                public_key = decision.key
            prepared = prepare(decision, issuer, public_key, now, self._templates)
            certificate, der = await self._sign(prepared)
        private_key = None if subject_key is None else private_key_pem(subject_key)
        serial = f"{prepared.serial_number:x}"
        row = RecordRow(
            serial_number=serial,
            certificate=der,
            issuer=issuer.name,
            role=grant.role,
            authenticator=caller.authenticator,
            caller=caller.subject,
            spiffe_id=grant.spiffe_id_text,
            subject=grant.subject_text,
            names=grant.name_texts,
            not_before=decision.not_before,
            not_after=decision.not_after,
            created_at=now,
            request_id=origin.request_id,
            common_name=grant.common_name,
            reply=None
            if attempt is None
            else attempt.seal(
                certificate=der,
                private_key_pem=private_key,
                warnings=decision.warnings,
                expires_at=min(now + KEPT_FOR, decision.not_after),
            ),
        )
        if grant.is_recorded:
            # A client that hangs up now must leave neither a certificate without its record
            # nor a record without its line in the log; and it has its turn for as long.
            writing = asyncio.ensure_future(self._write_down(row, origin))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait((writing,))
                raise
        else:
            self._log_granted(row, origin)
        return Issued(
            issuer=issuer,
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode("ascii"),
            serial_number=serial,
            private_key_pem=private_key,
            role=grant.role,
            spiffe_id=row.spiffe_id,
            not_before=decision.not_before,
            not_after=decision.not_after,
            warnings=decision.warnings,
        )

    async def _sign(self, prepared: Prepared) -> tuple[x509.Certificate, bytes]:
        """Has the issuer's key sign, and trusts the answer only once it verifies."""
        signature = await sign_and_verify(
            prepared.issuer.key,
            prepared.issuer.public_key,
            prepared.to_be_signed.data,
            prepared.algorithm,
            self._on_key_trouble,
        )
        der = prepared.to_be_signed.assemble(signature)
        return x509.load_der_x509_certificate(der), der

    async def _write_down(self, row: RecordRow, origin: Origin) -> None:
        """Records the certificate, and logs that it was granted.

        Raises:
            Outrun: Another attempt was recorded first.
        """
        if not await self._record(row):
            raise Outrun
        self._log_granted(row, origin)

    def _log_granted(self, row: RecordRow, origin: Origin) -> None:
        self._audit.granted(
            origin,
            caller=row.caller,
            authenticator=row.authenticator,
            role=row.role,
            spiffe_id=row.spiffe_id,
            names=row.names,
            serial=row.serial_number,
            issuer=row.issuer,
            not_after=row.not_after,
        )

    async def _record(self, row: RecordRow) -> bool:
        started = time.perf_counter()
        observe = _NOT_RECORDED
        try:
            is_first = await self._store.record(row)
            observe = _RECORDED
            return is_first
        finally:
            observe(time.perf_counter() - started)

    def close(self) -> None:
        """Stops making key pairs."""
        self._subject_keys.close()
