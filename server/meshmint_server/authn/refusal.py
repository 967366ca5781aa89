"""Why a credential is refused.

A message says what to do next. It may name what the token claims (its issuer,
audience, times); it never holds the token, a part of it, or its signature.
"""

from __future__ import annotations

from enum import StrEnum

from meshmint_server.errors import Unauthenticated

__all__ = ["Refusal", "quoted", "refuse"]

MAX_QUOTED = 200


class Refusal(StrEnum):
    """``google.rpc.ErrorInfo.reason`` of an Unauthenticated error."""

    CREDENTIAL_MISSING = "CREDENTIAL_MISSING"
    CREDENTIAL_MALFORMED = "CREDENTIAL_MALFORMED"
    CREDENTIAL_EXPIRED = "CREDENTIAL_EXPIRED"
    CREDENTIAL_NOT_YET_VALID = "CREDENTIAL_NOT_YET_VALID"
    AUDIENCE_MISMATCH = "AUDIENCE_MISMATCH"
    ISSUER_UNKNOWN = "ISSUER_UNKNOWN"
    SIGNATURE_INVALID = "SIGNATURE_INVALID"
    CREDENTIAL_REJECTED = "CREDENTIAL_REJECTED"


def refuse(reason: Refusal, message: str) -> Unauthenticated:
    """Makes the error to raise."""
    return Unauthenticated(message, reason=reason.value)


def quoted(value: object) -> str:
    """A value from a token, fit for a message: printable, quoted, not long."""
    text = value if isinstance(value, str) else repr(value)
    shown = ascii(text[:MAX_QUOTED])
    return f"{shown}…" if len(text) > MAX_QUOTED else shown
