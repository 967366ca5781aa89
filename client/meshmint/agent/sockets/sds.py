"""Envoy's Secret Discovery Service, version 3, for one socket.

Streams: what they ask for is kept in a subscription, and answered from the newest
picture when the client reads. A name that stands for nothing is answered as soon as it
stands for something: an Envoy holds its listener back meanwhile, as it should, and an
error would have it come back later than the certificate does (ADR 0022).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Generic, TypeVar

import grpc

from meshmint.agent.sockets.feed import Feed, View
from meshmint.agent.sockets.refusals import Refusal, clean, told
from meshmint.agent.sockets.sds_secrets import TYPE_URL, Secrets
from meshmint.agent.sockets.sds_subscriptions import (
    DeltaSubscription,
    Request,
    Subscription,
    WholeSubscription,
)
from meshmint.third_party.envoy.service.discovery.v3 import discovery_pb2
from meshmint.third_party.envoy.service.secret.v3 import sds_pb2_grpc

__all__ = ["SecretDiscovery"]

_log = logging.getLogger(__name__)

ServicerContext = grpc.aio.ServicerContext[Any, Any]

Asked = TypeVar("Asked", bound=Request)
Told = TypeVar("Told")

# How many names a log line or a status tells.
_TOLD_NAMES = 10
_NAME_CHARACTERS = 100
# How many lines the clients of one socket may cause, lest one of them fill the log.
_MOST_WARNINGS = 100
_WARNING_SECONDS = 60.0


# Streams are written to, not yielded to, as in `WorkloadApi`.
class SecretDiscovery(sds_pb2_grpc.SecretDiscoveryServiceServicer):
    """Serves one socket.

    Args:
        feed: What the socket shows.
        first_request_seconds: How long a stream may be open without any request.
    """

    def __init__(self, feed: Feed, *, first_request_seconds: float = 60.0) -> None:
        self._feed = feed
        self._first_request_seconds = first_request_seconds
        self._view: View | None = None
        self._secrets: Secrets | None = None
        self._warnings = _Warnings()

    async def StreamSecrets(  # type: ignore[override]  # noqa: N802, Envoy's name
        self,
        request_iterator: AsyncIterator[discovery_pb2.DiscoveryRequest],
        context: ServicerContext,
    ) -> None:
        """Sends what is asked for, and again whenever it changes."""
        await self._converse(request_iterator, context, WholeSubscription())

    async def DeltaSecrets(  # type: ignore[override]  # noqa: N802
        self,
        request_iterator: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest],
        context: ServicerContext,
    ) -> None:
        """Sends what is asked for, and changes of it, and says what is gone."""
        await self._converse(request_iterator, context, DeltaSubscription())

    async def FetchSecrets(  # noqa: N802
        self, request: discovery_pb2.DiscoveryRequest, context: ServicerContext
    ) -> discovery_pb2.DiscoveryResponse:
        """Returns those that there are of what is asked for."""
        async with told(context):
            subscription = WholeSubscription()
            subscription.take(request)
            secrets = self._present_secrets()
            if secrets is None:
                raise Refusal(
                    grpc.StatusCode.UNAVAILABLE,
                    "the agent is starting and has no certificate yet: try again in a moment",
                )
            response = subscription.respond(secrets)
            if response is None and request.resource_names:
                raise Refusal(
                    grpc.StatusCode.NOT_FOUND,
                    f"there is no {_listed(subscription.missing(secrets))} here: ask for the name "
                    f"or the SPIFFE ID of a certificate that this socket serves, for default, "
                    f"ROOTCA, ALL, or for spiffe:// and a trust domain",
                )
            return response or discovery_pb2.DiscoveryResponse(type_url=TYPE_URL)

    async def _converse(
        self,
        requests: AsyncIterator[Asked],
        context: ServicerContext,
        subscription: Subscription[Asked, Told],
    ) -> None:
        async with told(context):
            with self._feed.listen() as news:
                conversation = _Conversation(
                    context, subscription, news, self._present_secrets, self._warnings
                )
                await conversation.run(requests, self._first_request_seconds)

    def _present_secrets(self) -> Secrets | None:
        view = self._feed.view
        if view is None:
            return None
        if self._secrets is None or self._view is not view:
            self._view, self._secrets = view, Secrets(view, self._secrets)
        return self._secrets


class _Warnings:
    """Tells of what clients do, and of so much a minute."""

    def __init__(self) -> None:
        self._since = 0.0
        self._told = 0

    def tell(self, text: str, *values: object) -> None:
        """One more line, or none."""
        now = time.monotonic()
        if not self._told or now - self._since >= _WARNING_SECONDS:
            self._since, self._told = now, 0
        self._told += 1
        if self._told <= _MOST_WARNINGS:
            _log.warning(text, *values)
        elif self._told == _MOST_WARNINGS + 1:
            _log.warning("The clients of this socket give rise to more than is told in a minute")


class _Conversation(Generic[Asked, Told]):
    """One stream: one task reads what the client asks for, the other writes when it is due."""

    def __init__(
        self,
        context: ServicerContext,
        subscription: Subscription[Asked, Told],
        news: asyncio.Event,
        present_secrets: Callable[[], Secrets | None],
        warnings: _Warnings,
    ) -> None:
        self._context = context
        self._subscription = subscription
        self._news = news
        self._present_secrets = present_secrets
        self._warnings = warnings
        self._client = "An Envoy"
        self._missed: set[str] = set()

    async def run(self, requests: AsyncIterator[Asked], first_request_seconds: float) -> None:
        """Ends when the client has said all, or with a `Refusal`."""
        reading = asyncio.create_task(self._read(requests, first_request_seconds))
        reading.add_done_callback(lambda _: self._news.set())
        try:
            await self._write(reading)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _write(self, reading: asyncio.Task[None]) -> None:
        has_ended = False
        while not has_ended:
            await self._news.wait()
            self._news.clear()
            # Who has said all that they have to say still gets what they asked for, once.
            has_ended = reading.done()
            if has_ended:
                reading.result()
            secrets = self._present_secrets()
            if secrets is None:
                continue
            response = self._subscription.respond(secrets)
            if response is not None:
                # Waits until the client makes room for it.
                await self._context.write(response)
            self._tell_missing(secrets)

    async def _read(self, requests: AsyncIterator[Asked], first_request_seconds: float) -> None:
        try:
            async with asyncio.timeout(first_request_seconds) as patience:
                async for request in requests:
                    if patience.when() is not None:
                        patience.reschedule(None)
                        # It says who it is with the first request alone.
                        if node := request.node.id:
                            self._client = f"The Envoy {clean(node, _NAME_CHARACTERS)!r}"
                    nack = self._subscription.take(request)
                    if nack is not None:
                        self._warnings.tell(
                            "%s refuses %s and goes on with what it had: %s",
                            self._client,
                            _listed(nack.names),
                            nack.error or "it does not say why",
                        )
                    self._news.set()
        except TimeoutError:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no request came within {first_request_seconds:g} seconds: say what you want "
                f"when you open a stream",
            ) from None

    def _tell_missing(self, secrets: Secrets) -> None:
        missing = set(self._subscription.missing(secrets))
        if missing - self._missed:
            self._warnings.tell(
                "%s asks for %s, which no certificate or bundle here is called; it is sent as "
                "soon as there is one",
                self._client,
                _listed(sorted(missing - self._missed)),
            )
        self._missed = missing


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(clean(name, _NAME_CHARACTERS) for name in names[:_TOLD_NAMES])
    return f"{told} and {len(names) - _TOLD_NAMES} more" if len(names) > _TOLD_NAMES else told
