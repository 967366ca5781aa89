"""What every RPC has in common: who calls, how long it may take, how errors leave.

The outermost edge: the only place that turns an unexpected exception into
INTERNAL, with a request id and without a word about why.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import grpc
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from meshmint_server import telemetry
from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authn import Authenticators
from meshmint_server.errors import MeshmintError, Unauthenticated, Violation
from meshmint_server.grpc_api.entrance import Entrance
from meshmint_server.issuance import Deadline
from meshmint_server.policy import Caller

__all__ = ["ENDS", "Call", "Edge", "rpc", "status_of", "status_of_bug", "streaming_rpc"]

log = structlog.get_logger(__name__)

ERROR_DOMAIN = "meshmint"
REQUEST_ID_KEY = "x-request-id"
# The client is gone, or the process is about to be.
ENDS = (asyncio.CancelledError, KeyboardInterrupt, SystemExit)
_DETAILS_KEY = "grpc-status-details-bin"
# Error details travel in HTTP/2 trailers, which clients limit to 8 KiB; the message goes
# there twice, once percent-encoded, and the details in base64. All in bytes.
_MAX_VIOLATIONS = 20
_MAX_ALL_VIOLATIONS = 3500
_MAX_FIELD = 100
_MAX_DESCRIPTION = 300
_MAX_MESSAGE = 700

Metadata = tuple[tuple[str, str | bytes], ...]
Request = TypeVar("Request")
Response = TypeVar("Response")
Servicer = TypeVar("Servicer", bound="HasEdge")


@dataclass(frozen=True, slots=True)
class Edge:
    """What servicers need beside the domain.

    Attributes:
        authenticators: Turn credentials into callers.
        audit: Where refused credentials are written down.
        time_limit: Seconds that a request may take where the client sets no
            deadline, or a longer one.
        entrance: Where requests wait while the listener closes.
        peers: Whom gRPC's peers really are, where a relay stands between.
    """

    authenticators: Authenticators
    audit: AuditLog
    time_limit: float
    entrance: Entrance = field(default_factory=Entrance)
    peers: Mapping[str, str] = field(default_factory=dict)

    def origin(self, rpc: str, context: grpc.aio.ServicerContext[Any, Any]) -> Origin:
        """Where a request comes from, with a new id."""
        peer = context.peer()
        return Origin(os.urandom(16).hex(), rpc, self.peers.get(peer, peer))


class HasEdge(Protocol):
    """A servicer."""

    edge: Edge


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC in flight."""

    origin: Origin
    deadline: Deadline
    token: str | None
    edge: Edge
    metadata: Metadata = ()

    def values(self, key: str) -> list[str]:
        """What the metadata holds under a key."""
        return [value for name, value in self.metadata if name == key and isinstance(value, str)]

    async def authenticate(
        self, deadline: Deadline | None = None, *, among: Collection[str] | None = None
    ) -> Caller:
        """The caller behind the credential.

        Args:
            deadline: Until when to find out; the call's own if there is none.
            among: Names of the authenticators that count for this RPC; None: all.

        Raises:
            Unauthenticated: There is no credential, or it does not hold.
            VerifierUnavailable: It cannot be checked at present.
        """
        try:  # and not `writing_down`: every request passes here
            return await self.edge.authenticators.authenticate(
                self.token, within=(deadline or self.deadline).limit, among=among
            )
        except MeshmintError as error:
            self.edge.audit.refused(self.origin, error)
            raise

    @contextmanager
    def writing_down(self, caller: Caller | None = None) -> Iterator[None]:
        """Writes down what is refused inside, before the domain has a part in it.

        Args:
            caller: Who calls, if that is known.
        """
        try:
            yield
        except MeshmintError as error:
            self.edge.audit.refused(
                self.origin,
                error,
                caller=None if caller is None else caller.subject,
                authenticator=None if caller is None else caller.authenticator,
            )
            raise

    def through(self, actor: Caller) -> Call:
        """This call as one that somebody makes in another's name."""
        return replace(self, origin=replace(self.origin, actor=actor.subject))

    async def speak_for(self, actor: Caller, identity: str, accounts: Collection[str]) -> Caller:
        """The service account in whose name a node's proxy asks.

        Args:
            actor: The proxy.
            identity: The SPIFFE ID that it asks for.
            accounts: The service accounts of proxies that may do so, ``namespace/name``.

        Raises:
            InvalidRequest: It is no SPIFFE ID.
            ImpersonationDenied: The proxy may not ask for it.
            VerifierUnavailable: That cannot be told at present.
        """
        try:
            return await self.edge.authenticators.speak_for(
                actor, identity, accounts, within=self.deadline.limit
            )
        except MeshmintError as error:
            self.edge.audit.refused(self.origin, error, authenticator=actor.authenticator)
            raise


def rpc(
    name: str, *, in_words_of: Callable[[MeshmintError], MeshmintError] | None = None
) -> Callable[
    [Callable[[Servicer, Request, Call], Awaitable[Response]]],
    Callable[[Servicer, Request, grpc.aio.ServicerContext[Any, Any]], Awaitable[Response]],
]:
    """Makes a servicer's method of one that takes a `Call`, and translates its errors.

    Args:
        name: Service and method, such as ``CertificateService/Sign``.
        in_words_of: Gives an error the code and the text that another protocol's clients
            expect, once all that is to be known of it was written down.
    """

    def decorate(
        method: Callable[[Servicer, Request, Call], Awaitable[Response]],
    ) -> Callable[[Servicer, Request, grpc.aio.ServicerContext[Any, Any]], Awaitable[Response]]:
        @functools.wraps(method)
        async def handle(
            self: Servicer, request: Request, context: grpc.aio.ServicerContext[Any, Any]
        ) -> Response:
            started = time.perf_counter()
            code = "OK"
            origin = self.edge.origin(name, context)
            telemetry.IN_FLIGHT.inc()
            try:
                await self.edge.entrance.enter()
                return await method(self, request, _call(self.edge, context, origin))
            except BaseException as error:  # a panic in a Rust extension is no Exception
                told: BaseException = error
                if in_words_of is not None and isinstance(error, MeshmintError):
                    told = in_words_of(error)
                code = _code(told)
                await _refuse(context, told, origin)
                raise
            finally:
                telemetry.IN_FLIGHT.dec()
                telemetry.RPC_SECONDS.labels(name, code).observe(time.perf_counter() - started)

        return handle

    return decorate


def streaming_rpc(
    name: str,
) -> Callable[
    [Callable[[Servicer, Request, Call], AsyncGenerator[Response, None]]],
    Callable[[Servicer, Request, grpc.aio.ServicerContext[Any, Any]], AsyncIterator[Response]],
]:
    """Does what `rpc` does for a method that answers with a stream.

    A response is sent before the next one is asked for, so a method that looks at
    the present state each time never queues anything for a slow reader. A stream
    is not in flight as a request is, and no time limit of ours ends it.

    Args:
        name: Service and method, such as ``CertificateService/WatchTrustBundle``.
    """

    def decorate(
        method: Callable[[Servicer, Request, Call], AsyncGenerator[Response, None]],
    ) -> Callable[[Servicer, Request, grpc.aio.ServicerContext[Any, Any]], AsyncIterator[Response]]:
        @functools.wraps(method)
        async def handle(
            self: Servicer, request: Request, context: grpc.aio.ServicerContext[Any, Any]
        ) -> None:
            started = time.perf_counter()
            code = "OK"
            origin = self.edge.origin(name, context)
            try:
                await self.edge.entrance.enter()
                # Closed here and not by a garbage collector, so that what the method holds
                # is free when the client is gone.
                call = _call(self.edge, context, origin)
                async with aclosing(method(self, request, call)) as responses:
                    async for response in responses:
                        await context.write(response)
            except BaseException as error:  # a panic in a Rust extension is no Exception
                code = _code(error)
                await _refuse(context, error, origin)
                raise
            finally:
                telemetry.RPC_SECONDS.labels(name, code).observe(time.perf_counter() - started)

        # grpc.aio takes a coroutine that writes; the generated servicer names an iterator.
        return handle  # type: ignore[return-value]

    return decorate


def _call(edge: Edge, context: grpc.aio.ServicerContext[Any, Any], origin: Origin) -> Call:
    context.set_trailing_metadata(((REQUEST_ID_KEY, origin.request_id),))
    remaining = context.time_remaining()
    limit = edge.time_limit
    metadata: Metadata = tuple(context.invocation_metadata() or ())
    return Call(
        origin=origin,
        deadline=Deadline.after(limit if remaining is None else min(limit, remaining)),
        token=_bearer_token(metadata, edge, origin),
        edge=edge,
        metadata=metadata,
    )


def _code(error: BaseException) -> str:
    if isinstance(error, MeshmintError):
        return error.code
    return "CANCELLED" if isinstance(error, ENDS) else "INTERNAL"


async def _refuse(
    context: grpc.aio.ServicerContext[Any, Any], error: BaseException, origin: Origin
) -> None:
    """Ends the RPC with the error's status; returns only where there is nobody to tell."""
    if isinstance(error, MeshmintError):
        await _abort(context, error, origin)
    if isinstance(error, ENDS):
        return
    status = status_of_bug(error, origin)
    await context.abort(
        grpc.StatusCode.INTERNAL, status.message, ((REQUEST_ID_KEY, origin.request_id),)
    )


def _bearer_token(metadata: Metadata, edge: Edge, origin: Origin) -> str | None:
    """The one bearer token of the request's metadata (RFC 6750 section 2.1)."""
    values = [value for key, value in metadata if key == "authorization"]
    if not values:
        return None
    scheme, _, token = str(values[0]).partition(" ")
    if len(values) == 1 and scheme.lower() == "bearer":
        return token
    error = Unauthenticated(
        "Send exactly one 'authorization' metadata entry of the form 'Bearer <token>'.",
        reason="CREDENTIAL_MALFORMED",
    )
    edge.audit.refused(origin, error)
    raise error


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], error: MeshmintError, origin: Origin
) -> None:
    status = status_of(error)
    await context.abort(
        grpc.StatusCode[error.code],
        status.message,
        ((REQUEST_ID_KEY, origin.request_id), (_DETAILS_KEY, status.SerializeToString())),
    )


def status_of(error: MeshmintError) -> status_pb2.Status:
    """The error as a client sees it: code, message and details."""
    return status_pb2.Status(
        code=grpc.StatusCode[error.code].value[0],
        message=_shorten(error.message, _MAX_MESSAGE),
        details=_details(error),
    )


def status_of_bug(error: BaseException, origin: Origin) -> status_pb2.Status:
    """What a client sees of an unexpected exception, which is logged with its request's id."""
    log.error("bug: unexpected error", request_id=origin.request_id, rpc=origin.rpc, exc_info=error)
    return status_pb2.Status(
        code=grpc.StatusCode.INTERNAL.value[0],
        message=f"Internal error. Tell the operator the request id {origin.request_id}.",
    )


def _details(error: MeshmintError) -> list[any_pb2.Any]:
    messages: list[Any] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN)]
    if error.violations:
        messages.append(_bad_request(error.violations))
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after * 1e9))
        messages.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for message in messages:
        box = any_pb2.Any()
        box.Pack(message)
        packed.append(box)
    return packed


def _bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    """As many violations as fit, and how many did not."""
    message = error_details_pb2.BadRequest()
    for violation in violations[:_MAX_VIOLATIONS]:
        shown = error_details_pb2.BadRequest.FieldViolation(
            field=_shorten(violation.field, _MAX_FIELD),
            description=_shorten(violation.description, _MAX_DESCRIPTION),
        )
        if message.ByteSize() + shown.ByteSize() > _MAX_ALL_VIOLATIONS:
            break
        message.field_violations.append(shown)
    if (left_out := len(violations) - len(message.field_violations)) > 0:
        message.field_violations.add(description=f"and {left_out} more violations")
    return message


def _shorten(text: str, limit: int) -> str:
    """The text, or as much of it as fits into so many bytes."""
    encoded = text.encode()
    if len(encoded) <= limit:
        return text
    return encoded[: limit - len("…".encode())].decode(errors="ignore") + "…"
