"""What a failed call looks like on a terminal, and its exit status."""

from __future__ import annotations

from typing import TextIO

from meshmint.errors import (
    AnswerRefused,
    ConfigurationError,
    DeadlineExceeded,
    FailedPrecondition,
    InternalError,
    InvalidArgument,
    MeshmintError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TokenUnavailable,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "DONE",
    "FAILED",
    "INTERRUPTED",
    "NOT_VERIFIED",
    "REFUSED",
    "UNAVAILABLE",
    "USAGE",
    "explain",
    "status_of",
]

DONE = 0
FAILED = 1
USAGE = 2
REFUSED = 3
UNAVAILABLE = 4
NOT_VERIFIED = 5
INTERRUPTED = 130

# The first that fits counts.
_STATUSES: tuple[tuple[type[MeshmintError], int], ...] = (
    (AnswerRefused, NOT_VERIFIED),
    (ConfigurationError, USAGE),
    (TokenUnavailable, USAGE),
    (Unauthenticated, REFUSED),
    (PermissionDenied, REFUSED),
    (InvalidArgument, REFUSED),
    (NotFound, REFUSED),
    (FailedPrecondition, REFUSED),
    (Unavailable, UNAVAILABLE),
    (ResourceExhausted, UNAVAILABLE),
    (DeadlineExceeded, UNAVAILABLE),
)

_HINTS: tuple[tuple[type[MeshmintError], str], ...] = (
    (TokenUnavailable, "give a readable file with --token-file or MESHMINT_TOKEN_FILE"),
    (
        Unauthenticated,
        "check --token-file: the token must be unexpired, and made for the server's audience",
    ),
    (Unavailable, "check --server and --ca-file, or try again later"),
    (ResourceExhausted, "try again later"),
    (DeadlineExceeded, "try again, or allow more time with --timeout"),
    (InternalError, "this is a bug in the server: its log has the details"),
)


def explain(error: MeshmintError, stream: TextIO) -> int:
    """Writes what went wrong and what to do; returns the exit status."""
    is_ours = isinstance(error, ConfigurationError | TokenUnavailable | AnswerRefused)
    reason = f" [{error.reason}]" if error.reason and not is_ours else ""
    print(f"error: {error.message.strip() or error.code}{reason}", file=stream)
    for violation in error.untold:
        print(f"  - {violation.field}: {violation.description}", file=stream)
    hint = next((text for kind, text in _HINTS if isinstance(error, kind)), "")
    if error.retry_after:
        hint = f"try again in {error.retry_after:g} s"
    if hint:
        print(f"hint: {hint}", file=stream)
    return status_of(error)


def status_of(error: MeshmintError) -> int:
    """The exit status of an error."""
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), FAILED)
