"""What a call can raise, and how a gRPC status becomes one of these errors.

A caller decides by class, by ``reason`` (stable) and by ``violations``; the
message is for people. No error ever carries a token or a private key.

    MeshmintError
    ├── Unauthenticated       no, bad or expired credential
    │   └── TokenUnavailable  the token source gave nothing; nothing was sent
    ├── PermissionDenied      the role, or what was asked of it, is not for this caller
    ├── InvalidArgument       something asked for is malformed
    ├── FailedPrecondition    an operator must act first, such as an expired issuer
    ├── NotFound              no such object
    ├── Unavailable           the service, or what it depends on, does not answer
    ├── ResourceExhausted     too much at once
    ├── DeadlineExceeded      no answer in time
    ├── Unimplemented         the server does not know this call; it may be older
    ├── InternalError         a bug in the server; its log has the request id
    ├── AnswerRefused         the server's answer does not hold what was asked for
    └── ConfigurationError    this client is set up in a way that cannot or must not work
        └── UnsafeTransport   a credential would cross a network in the clear
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypedDict

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

__all__ = [
    "AnswerRefused",
    "ConfigurationError",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "MeshmintError",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "TokenUnavailable",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "UnsafeTransport",
    "Violation",
]

# How gRPC and BoringSSL say that they do not trust a certificate.
_DISTRUST = ("certificate_verify_failed", "hostname verification", "certificate signature failure")

_DETAILS_KEY = "grpc-status-details-bin"


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
    """Base of everything that this package raises on purpose.

    Attributes:
        code: Name of the gRPC status code, such as ``PERMISSION_DENIED``.
        reason: ``google.rpc.ErrorInfo.reason``, stable, upper snake case;
            empty where neither the server nor this client gave one.
        message: What happened and what to do, for people.
        violations: Everything that is wrong with the request; may be empty.
        retry_after: Seconds after which the server says that a retry makes
            sense; None if it does not say.
    """

    default_code: ClassVar[str] = "UNKNOWN"
    default_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        violations: Iterable[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason or self.default_reason
        self.violations = tuple(violations)
        self.retry_after = retry_after

    @property
    def untold(self) -> tuple[Violation, ...]:
        """The violations that the message does not spell out already."""
        return tuple(v for v in self.violations if v.description not in self.message)

    def __str__(self) -> str:
        listed = "; ".join(f"{v.field}: {v.description}" for v in self.untold)
        return f"{self.message} ({listed})" if listed else self.message


class Unauthenticated(MeshmintError):
    """No credential, or one that does not hold."""

    default_code = "UNAUTHENTICATED"


class TokenUnavailable(Unauthenticated):
    """The token source gave no usable token; nothing was sent."""

    default_reason = "TOKEN_UNAVAILABLE"


class PermissionDenied(MeshmintError):
    """The role is not for this caller, or what was asked for lies outside it."""

    default_code = "PERMISSION_DENIED"


class InvalidArgument(MeshmintError):
    """Something asked for is malformed; found by the server or before sending."""

    default_code = "INVALID_ARGUMENT"


class FailedPrecondition(MeshmintError):
    """The service is not in a state to do this; an operator must act."""

    default_code = "FAILED_PRECONDITION"


class NotFound(MeshmintError):
    """There is no such object."""

    default_code = "NOT_FOUND"


class Unavailable(MeshmintError):
    """The service, or something it depends on, does not answer."""

    default_code = "UNAVAILABLE"


class ResourceExhausted(MeshmintError):
    """The service has too much to do, or the message is over its size limit."""

    default_code = "RESOURCE_EXHAUSTED"


class DeadlineExceeded(MeshmintError):
    """There was no answer within the time-out."""

    default_code = "DEADLINE_EXCEEDED"


class Unimplemented(MeshmintError):
    """The server does not know this call."""

    default_code = "UNIMPLEMENTED"


class InternalError(MeshmintError):
    """A bug in the server."""

    default_code = "INTERNAL"


class AnswerRefused(MeshmintError):
    """The answer does not hold what was asked for; what it brought was thrown away."""

    default_code = "DATA_LOSS"
    default_reason = "ANSWER_REFUSED"


class ConfigurationError(MeshmintError):
    """This client is set up in a way that cannot work; nothing was sent."""

    default_code = "FAILED_PRECONDITION"
    default_reason = "CLIENT_CONFIGURATION"


class UnsafeTransport(ConfigurationError):
    """A credential would cross a network in the clear; nothing was sent."""

    default_reason = "UNSAFE_TRANSPORT"


_BY_CODE: dict[str, type[MeshmintError]] = {
    error.default_code: error
    for error in (
        Unauthenticated,
        PermissionDenied,
        InvalidArgument,
        FailedPrecondition,
        NotFound,
        Unavailable,
        ResourceExhausted,
        DeadlineExceeded,
        Unimplemented,
        InternalError,
    )
}
# A gRPC server that stops says so of calls that it has not begun (grpc/grpc#41785): the
# caller did not cancel, so the server went away.
_BY_CODE["CANCELLED"] = Unavailable
# An error that says OK is none that anybody knows.
_NAMES = {code.value[0]: code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK}


class FailedCall(Protocol):
    """What a failed RPC tells, the same for grpc and grpc.aio."""

    def code(self) -> grpc.StatusCode:
        """The status code."""
        ...

    def details(self) -> str | None:
        """The status message."""
        ...

    def trailing_metadata(self) -> Iterable[Any] | None:
        """The trailing metadata."""
        ...


def error_from_rpc(failed: FailedCall, *, target: str) -> MeshmintError:
    """Translates a failed RPC.

    Args:
        failed: The ``grpc.RpcError`` or ``grpc.aio.AioRpcError``.
        target: Where the call went; named when the transport itself failed.
    """
    code = failed.code().name
    message = failed.details() or ""
    told = _told(_details(failed))
    if not told["reason"]:
        message = _explain_transport(code, message, target)
    return _BY_CODE.get(code, MeshmintError)(message, code=code, **told)


def error_from_status(status: status_pb2.Status) -> MeshmintError:
    """Translates what failed by itself inside a call that goes on."""
    code = _NAMES.get(status.code, "UNKNOWN")
    message = status.message or f"the server answered {code} and no more"
    return _BY_CODE.get(code, MeshmintError)(message, code=code, **_told(status.details))


class _Told(TypedDict):
    """What an error's details say beside code and message."""

    reason: str
    violations: list[Violation]
    retry_after: float | None


def _told(details: Iterable[any_pb2.Any]) -> _Told:
    told = _Told(reason="", violations=[], retry_after=None)
    for detail in details:
        # The code, the message and the other details still tell what a caller must know.
        with contextlib.suppress(DecodeError, OverflowError):
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo()
                detail.Unpack(info)
                told["reason"] = info.reason
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest()
                detail.Unpack(bad)
                told["violations"] += (
                    Violation(v.field, v.description) for v in bad.field_violations
                )
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                delay = retry.retry_delay.ToTimedelta().total_seconds()
                told["retry_after"] = max(0.0, delay)
    return told


def _details(failed: FailedCall) -> list[any_pb2.Any]:
    for key, value in failed.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return list(status_pb2.Status.FromString(value).details)
            except DecodeError:
                # The code and the message still tell what a caller must know.
                return []
    return []


def _explain_transport(code: str, message: str, target: str) -> str:
    """Says what to do about a status that gRPC made itself, without the server."""
    if code == "UNAVAILABLE":
        lowered = message.lower()
        if any(sign in lowered for sign in _DISTRUST):
            return (
                f"the TLS certificate of {target} is not trusted: check that the CA file holds "
                f"the roots of the server's certificate, and that it names this host ({message})"
            )
        if "handshake" in lowered or "ssl" in lowered or "wrong version" in lowered:
            return f"no TLS handshake with {target}: does it serve TLS there? ({message})"
        return f"cannot reach {target}: {message}"
    if code == "CANCELLED":
        return f"{target} ended the call before it answered: it may be restarting ({message})"
    if code == "DEADLINE_EXCEEDED":
        return f"no answer from {target} within the time-out"
    return message or f"{target} answered {code} and no more"
