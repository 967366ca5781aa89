"""Every error that leaves a room on purpose, and what each becomes on the wire.

Messages are written for the caller: they say what to do next and never show
internals. The edges translate an error once, by its class attributes; nothing
else in the server knows about status codes.

    MeshmintError
    ├── Unauthenticated        UNAUTHENTICATED      no, bad or expired credential
    ├── PermissionDenied       PERMISSION_DENIED    not for this caller
    │   ├── RoleDenied                              role unknown or not for the caller
    │   ├── ImpersonationDenied                     asks for an identity of somebody else
    │   └── PolicyViolated                          names, key, usages or lifetime outside the role
    ├── InvalidRequest         INVALID_ARGUMENT     malformed CSR, name, duration, id
    │   └── InvalidRole                             a role that can never work
    ├── NotFound               NOT_FOUND            an object an operator asked for
    ├── PreconditionFailed     FAILED_PRECONDITION
    │   ├── IssuerNotReady                          no active issuer
    │   ├── IssuerExpired                           expired, or the leaf would outlive the chain
    │   └── RoleAmbiguous                           no role named, and several fit
    ├── Unavailable            UNAVAILABLE          with RetryInfo
    │   ├── KeyUnavailable                          HSM or key file
    │   ├── StoreUnavailable                        database
    │   └── VerifierUnavailable                     token reviewer or JWKS
    ├── Overloaded             RESOURCE_EXHAUSTED   with RetryInfo
    └── DeadlineTooShort       DEADLINE_EXCEEDED    nothing was minted

Anything else that escapes is a bug, and becomes INTERNAL at the edge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "DeadlineTooShort",
    "ImpersonationDenied",
    "InvalidRequest",
    "InvalidRole",
    "IssuerExpired",
    "IssuerNotReady",
    "KeyUnavailable",
    "MeshmintError",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "PolicyViolated",
    "PreconditionFailed",
    "RoleAmbiguous",
    "RoleDenied",
    "StoreUnavailable",
    "Unauthenticated",
    "Unavailable",
    "VerifierUnavailable",
    "Violation",
]


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with a request.

    Attributes:
        field: Path of the request's field, such as ``names.dns_names[2]``.
        description: What is wrong and what to do, one sentence.
    """

    field: str
    description: str


class MeshmintError(Exception):
    """Base of all errors that are meant for a caller.

    Attributes:
        code: Name of the gRPC status code.
        reason: ``google.rpc.ErrorInfo.reason``; stable, upper snake case.
        message: What to do, for people.
        violations: Every field violation found; may be empty.
        retry_after: Seconds after which a retry makes sense; None if never.
    """

    code: ClassVar[str]
    default_reason: ClassVar[str]
    default_retry_after: ClassVar[float | None] = None

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.violations = tuple(violations)
        self.retry_after = self.default_retry_after if retry_after is None else retry_after


class Unauthenticated(MeshmintError):
    """No credential, or one that does not hold."""

    code = "UNAUTHENTICATED"
    default_reason = "CREDENTIAL_INVALID"


class PermissionDenied(MeshmintError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class RoleDenied(PermissionDenied):
    """The role is unknown or not for this caller; the caller cannot tell which."""

    default_reason = "ROLE_DENIED"


class ImpersonationDenied(PermissionDenied):
    """Asked for in the name of somebody else, by whom this is not granted."""

    default_reason = "IMPERSONATION_DENIED"


class PolicyViolated(PermissionDenied):
    """What was asked for lies outside the role. Carries every violation."""

    default_reason = "POLICY_VIOLATED"


class InvalidRequest(MeshmintError):
    """Something in the request is malformed."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_REQUEST"


class InvalidRole(InvalidRequest):
    """A role was put that can never work. Carries every violation."""

    default_reason = "INVALID_ROLE"


class NotFound(MeshmintError):
    """There is no such object."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class PreconditionFailed(MeshmintError):
    """The service is not in a state to do this; an operator must act."""

    code = "FAILED_PRECONDITION"
    default_reason = "PRECONDITION_FAILED"


class IssuerNotReady(PreconditionFailed):
    """There is no active issuer, or not the one that the role names."""

    default_reason = "ISSUER_NOT_READY"


class IssuerExpired(PreconditionFailed):
    """The issuer has expired, or the certificate would outlive its chain."""

    default_reason = "ISSUER_EXPIRED"


class RoleAmbiguous(PreconditionFailed):
    """No role was named, and not exactly one fits the caller."""

    default_reason = "ROLE_AMBIGUOUS"


class Unavailable(MeshmintError):
    """Something the service depends on does not answer. A retry may help."""

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"
    default_retry_after = 1.0


class KeyUnavailable(Unavailable):
    """The signing key's token does not sign at present."""

    default_reason = "KEY_UNAVAILABLE"


class StoreUnavailable(Unavailable):
    """The database does not answer; nothing was handed out."""

    default_reason = "STORE_UNAVAILABLE"


class VerifierUnavailable(Unavailable):
    """The token reviewer or the JWKS endpoint does not answer."""

    default_reason = "VERIFIER_UNAVAILABLE"


class Overloaded(MeshmintError):
    """The signing queue is full. Retry later."""

    code = "RESOURCE_EXHAUSTED"
    default_reason = "OVERLOADED"
    default_retry_after = 0.5


class DeadlineTooShort(MeshmintError):
    """The client's deadline cannot be met. Nothing was minted."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_TOO_SHORT"
