"""The path of every JWT-SVID: decide → prepare → sign → verify → log → reply.

The same admission, deadlines and rates as for certificates. No record is kept: a token
lives for minutes, cannot be revoked, and every one of them has its line in the audit log.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authority import JwtKeyBook
from meshmint_server.errors import MeshmintError, PreconditionFailed
from meshmint_server.issuance import jws
from meshmint_server.issuance.admission import Admission
from meshmint_server.issuance.deadline import Deadline
from meshmint_server.issuance.roles import RoleBook
from meshmint_server.issuance.signatures import sign_and_verify
from meshmint_server.keys import default_algorithm
from meshmint_server.policy import (
    Bounds,
    Caller,
    JwtSvidRequest,
    Role,
    choose_jwt_svid_role,
    decide_jwt_svid,
    still_chosen,
)

__all__ = ["IssuedJwtSvid", "JwtSvids"]


@dataclass(frozen=True, slots=True)
class IssuedJwtSvid:
    """An issued JWT-SVID.

    Attributes:
        token: The token; whoever has it is taken for the caller.
        spiffe_id: Claim ``sub``.
        issued_at: When, UTC; claim ``iat`` is earlier.
        expires_at: Claim ``exp``.
        role: Name of the role that was used.
        jwt_id: Claim ``jti``.
        warnings: What was changed of what was asked for, for people.
    """

    token: str = field(repr=False)
    spiffe_id: str
    issued_at: datetime
    expires_at: datetime
    role: str
    jwt_id: str
    warnings: tuple[str, ...]


class JwtSvids:
    """Issues JWT-SVIDs. One per worker process.

    Args:
        roles: Who may have which.
        keys: The key that signs.
        bounds: The service's own limits.
        audit: Where every decision is written down.
        admission: Shared with the issuing of certificates.
        issuer: Claim ``iss``; None leaves it out.
        is_enabled: Whether the service issues any.
        clock: The present.
        on_key_trouble: Told when the key does not do its work.
    """

    def __init__(
        self,
        *,
        roles: RoleBook,
        keys: JwtKeyBook,
        bounds: Bounds,
        audit: AuditLog,
        admission: Admission | None = None,
        issuer: str | None = None,
        is_enabled: bool = True,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_key_trouble: Callable[[], None] = lambda: None,
    ) -> None:
        self._roles = roles
        self._keys = keys
        self._bounds = bounds
        self._audit = audit
        self._admission = admission or Admission()
        self._issuer = issuer
        self._is_enabled = is_enabled
        self._clock = clock
        self._on_key_trouble = on_key_trouble

    async def issue(
        self,
        caller: Caller,
        role_name: str,
        read: Callable[[], JwtSvidRequest],
        *,
        origin: Origin,
        deadline: Deadline,
    ) -> IssuedJwtSvid:
        """Decides about a request and, if it is granted, issues the token.

        Args:
            caller: Who asks.
            role_name: The role asked for; may be empty.
            read: Reads what is asked for; raises InvalidRequest.
            origin: Where the request came from.
            deadline: When the client stops waiting.

        Raises:
            MeshmintError: The request is refused, or cannot be served at present;
                nothing was handed out.
        """
        try:
            if not self._is_enabled:
                raise PreconditionFailed(
                    "This service issues no JWT-SVIDs. An operator turns them on with "
                    "'jwt_svid.enabled' in its configuration.",
                    reason="JWT_SVIDS_OFF",
                )
            role = choose_jwt_svid_role(self._roles.roles, caller, role_name)
            async with self._admission.enter(caller, role.name, deadline), deadline.limit():
                role = still_chosen(self._roles.roles, caller, role)
                return await self._issue(role, caller, read(), origin)
        except MeshmintError as error:
            self._audit.refused(
                origin,
                error,
                caller=caller.subject,
                authenticator=caller.authenticator,
                role=role_name or None,
            )
            raise

    async def _issue(
        self, role: Role, caller: Caller, request: JwtSvidRequest, origin: Origin
    ) -> IssuedJwtSvid:
        decision = decide_jwt_svid(role, caller, request, now=self._clock(), bounds=self._bounds)
        signer = self._keys.signing()
        jwt_id = secrets.token_hex(16)
        data = jws.to_be_signed(decision, key_id=signer.key_id, jwt_id=jwt_id, issuer=self._issuer)
        signature = await sign_and_verify(
            signer.key,
            signer.public_key,
            data,
            default_algorithm(signer.public_key),
            self._on_key_trouble,
        )
        token = jws.assemble(data, signature)
        self._audit.jwt_svid_granted(
            origin,
            caller=caller.subject,
            authenticator=caller.authenticator,
            role=decision.role,
            spiffe_id=str(decision.spiffe_id),
            audiences=decision.audiences,
            jwt_id=jwt_id,
            key=signer.key_id,
            expires_at=decision.expires_at,
        )
        return IssuedJwtSvid(
            token=token,
            spiffe_id=str(decision.spiffe_id),
            issued_at=decision.issued_at,
            expires_at=decision.expires_at,
            role=decision.role,
            jwt_id=jwt_id,
            warnings=decision.warnings,
        )
