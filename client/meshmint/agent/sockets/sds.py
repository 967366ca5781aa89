"""Envoy's Secret Discovery Service, version 3, for one socket.

Streams: what they ask for is kept in a subscription, and answered from the newest
picture when the client reads. A name that stands for nothing is answered as soon as it
stands for something: an Envoy holds its listener back meanwhile, as it should, and an
error would have it come back later than the certificate does (ADR 0022).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import grpc

from meshmint.agent.sockets.feed import Feed, View
from meshmint.agent.sockets.refusals import Refusal, clean, told
from meshmint.agent.sockets.sds_secrets import TYPE_URL, Secrets
from meshmint.agent.sockets.sds_subscriptions import (
    DeltaSubscription,
    Nack,
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
        raise AssertionError("told raises")

    async def _converse(
        self,
        requests: AsyncIterator[Asked],
        context: ServicerContext,
        subscription: Subscription[Asked, Told],
    ) -> None:
        async with told(context):
            with self._feed.listen() as news:
                reader = asyncio.create_task(self._read(requests, subscription, news))
                reader.add_done_callback(lambda _: news.set())
                try:
                    await self._write(context, subscription, news, reader)
                finally:
                    reader.cancel()
                    await asyncio.gather(reader, return_exceptions=True)

    async def _write(
        self,
        context: ServicerContext,
        subscription: Subscription[Asked, Told],
        news: asyncio.Event,
        reader: asyncio.Task[None],
    ) -> None:
        missed: set[str] = set()
        has_ended = False
        while not has_ended:
            await news.wait()
            news.clear()
            # Who has said all that they have to say still gets what they asked for, once.
            has_ended = reader.done()
            if has_ended:
                reader.result()
            secrets = self._present_secrets()
            if secrets is None:
                continue
            response = subscription.respond(secrets)
            if response is not None:
                # Waits until the client makes room for it.
                await context.write(response)
            missing = set(subscription.missing(secrets))
            if missing - missed:
                _log.warning(
                    "An Envoy asks for %s, which no certificate or bundle here is called; it is "
                    "sent as soon as there is one",
                    _listed(sorted(missing - missed)),
                )
            missed = missing

    async def _read(
        self,
        requests: AsyncIterator[Asked],
        subscription: Subscription[Asked, Told],
        news: asyncio.Event,
    ) -> None:
        node = "an Envoy"
        try:
            async with asyncio.timeout(self._first_request_seconds) as first:
                async for request in requests:
                    if first.when() is not None:
                        first.reschedule(None)
                        # It is told with the first request alone.
                        node = f"the Envoy {clean(request.node.id, 100)!r}"
                    nack = subscription.take(request)
                    if nack is not None:
                        _tell(node, nack)
                    news.set()
        except TimeoutError:
            raise Refusal(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"no request came within {self._first_request_seconds:g} seconds: say what you "
                f"want when you open a stream",
            ) from None

    def _present_secrets(self) -> Secrets | None:
        view = self._feed.view
        if view is None:
            return None
        if self._secrets is None or self._view is not view:
            self._view, self._secrets = view, Secrets(view)
        return self._secrets


def _tell(node: str, nack: Nack) -> None:
    _log.warning(
        "%s refuses %s and goes on with what it had: %s",
        node[0].upper() + node[1:],
        _listed(nack.names),
        nack.error or "it does not say why",
    )


def _listed(names: tuple[str, ...] | list[str]) -> str:
    told = ", ".join(clean(name, _NAME_CHARACTERS) for name in names[:_TOLD_NAMES])
    return f"{told} and {len(names) - _TOLD_NAMES} more" if len(names) > _TOLD_NAMES else told
