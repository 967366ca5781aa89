"""One unix socket, served until it is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import grpc

from meshmint.agent.identities import Identities
from meshmint.agent.sockets.feed import Feed
from meshmint.agent.sockets.jwt_svids import JwtSource, JwtSvids
from meshmint.agent.sockets.sds import SecretDiscovery
from meshmint.agent.sockets.settings import SocketSettings
from meshmint.agent.sockets.socket_file import SocketError, SocketFile
from meshmint.agent.sockets.workload_api import WorkloadApi, add_workload_api
from meshmint.third_party.envoy.service.secret.v3 import sds_pb2_grpc

__all__ = ["serve_socket"]

_log = logging.getLogger(__name__)

# An Envoy tells all of its extensions with its name; a token has 16 KiB.
_MAX_REQUEST_BYTES = 1024 * 1024
# Calls that are no streams.
_MAX_SHORT_CALLS = 256
# A connection that nobody uses costs a file descriptor.
_IDLE_MILLISECONDS = 5 * 60 * 1000
# For what is in flight; streams are told at once.
_STOP_SECONDS = 2.0


@contextlib.asynccontextmanager
async def serve_socket(
    settings: SocketSettings, identities: Identities, jwt: JwtSource
) -> AsyncIterator[None]:
    """Serves one socket until the block is left; from entering on, it accepts.

    Args:
        settings: Of the socket.
        identities: What the agent holds.
        jwt: Where JWT-SVIDs come from.

    Raises:
        SocketError: It cannot be served; the text says why.
    """
    feed = Feed(settings.certificates, settings.max_streams)
    tokens = JwtSvids(jwt)
    with SocketFile(settings) as file:
        server = _server(settings, feed, tokens)
        try:
            server.add_insecure_port(file.address)
        except RuntimeError as error:
            raise SocketError(f"{settings.path}: gRPC cannot listen there: {error}") from error
        await server.start()
        following = asyncio.create_task(feed.run(identities))
        try:
            file.publish()
            _log.info("Serving %s on %s", " and ".join(settings.protocols), settings.path)
            yield
        finally:
            feed.close()
            await server.stop(_STOP_SECONDS)
            await tokens.close()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


def _server(settings: SocketSettings, feed: Feed, tokens: JwtSvids) -> grpc.aio.Server:
    # gRPC refuses some of those that wait from a thousand on, as many as come at once when all
    # workloads of a machine start; those over our own limit are told what to do.
    most = settings.max_streams + _MAX_SHORT_CALLS
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
            ("grpc.max_concurrent_streams", most),
            ("grpc.server.max_pending_requests", most),
            ("grpc.server.max_pending_requests_hard_limit", 2 * most),
            ("grpc.max_connection_idle_ms", _IDLE_MILLISECONDS),
            # Pings of well-behaved clients are allowed.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=most,
    )
    if "workload-api" in settings.protocols:
        add_workload_api(WorkloadApi(feed, tokens), server)
    if "sds" in settings.protocols:
        sds_pb2_grpc.add_SecretDiscoveryServiceServicer_to_server(SecretDiscovery(feed), server)
    return server
