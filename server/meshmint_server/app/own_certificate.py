"""The listeners that show the service's own certificate, and follow its renewal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import structlog

from meshmint_server.app.background import Background
from meshmint_server.authority import TrustBundleFeed
from meshmint_server.config import BundleEndpointSettings, Config, ConfigError
from meshmint_server.errors import MeshmintError
from meshmint_server.grpc_api import OwnCredentials, Relay, file_credentials
from meshmint_server.http_api import (
    CertificateFiles,
    ServerTls,
    bind,
    build_bundle_endpoint,
    serve_http,
)
from meshmint_server.issuance import Issued, ServiceCertificate

__all__ = ["BundleEndpoint", "LinkerdEntrance", "grpc_credentials"]

log = structlog.get_logger(__name__)

RETRY_SECONDS = 2.0


class BundleEndpoint:
    """The SPIFFE bundle endpoint, if it is configured.

    Made before the workers' other listeners, so that what is wrong with its files or
    address is known at the start; it serves once it has a certificate to show.

    Raises:
        ConfigError: The certificate files cannot be used.
        OSError: The address cannot be bound.
    """

    def __init__(self, settings: BundleEndpointSettings, background: Background) -> None:
        self._settings = settings
        self._background = background
        self._tls = ServerTls()
        if settings.listen is None:
            return
        if settings.certificate is not None and settings.key is not None:
            background(_files(settings.certificate, settings.key, self._tls, "bundle_endpoint"))
        self._bound = bind(settings.listen.host, settings.listen.port)

    @asynccontextmanager
    async def serve(
        self,
        bundles: TrustBundleFeed,
        service_certificate: ServiceCertificate,
        stopping: asyncio.Event,
    ) -> AsyncIterator[None]:
        """Serves until the end."""
        if self._settings.listen is None:
            yield
            return
        is_own = self._settings.profile == "https_spiffe"
        if is_own and not await _show_own(
            self._tls, service_certificate, self._background, stopping
        ):
            self._bound.close()
            yield
            return
        application = build_bundle_endpoint(bundles, self._settings.path)
        async with serve_http(application, self._bound, self._tls.context):
            log.info("serving the bundle endpoint", address=str(self._settings.listen))
            yield


class LinkerdEntrance:
    """The listener for Linkerd's proxies, if it is configured, before the gRPC one.

    Raises:
        ConfigError: The certificate files cannot be used.
        OSError: The address cannot be bound.
    """

    def __init__(self, config: Config, relay: Relay, background: Background) -> None:
        self._listen = config.linkerd.entrance
        self._relay = relay
        self._background = background
        self._tls = ServerTls("h2")
        self._is_own = config.tls.mode == "own"
        if self._listen is None:
            return
        if config.tls.certificate is not None and config.tls.key is not None:
            background(_files(config.tls.certificate, config.tls.key, self._tls, "linkerd"))
        self._bound = bind(self._listen.host, self._listen.port)

    @asynccontextmanager
    async def serve(
        self, service_certificate: ServiceCertificate, stopping: asyncio.Event
    ) -> AsyncIterator[None]:
        """Serves until the end; the gRPC listener must listen at the relay's address."""
        if self._listen is None:
            yield
            return
        if self._is_own and not await _show_own(
            self._tls, service_certificate, self._background, stopping
        ):
            self._bound.close()
            yield
            return
        async with self._relay.serve(self._bound, self._tls.context):
            log.info("serving Linkerd's proxies", address=str(self._listen))
            yield


def _files(certificate: Path, key: Path, tls: ServerTls, section: str) -> Coroutine[Any, Any, None]:
    """Has certificate files shown, and returns what follows their changes.

    Raises:
        ConfigError: They cannot be used.
    """
    files = CertificateFiles(certificate, key, tls, section)
    try:
        files.load()
    except OSError as error:
        raise ConfigError(f"{section}: {certificate} and {key} cannot be used: {error}") from error
    return files.follow()


async def _show_own(
    tls: ServerTls,
    service_certificate: ServiceCertificate,
    background: Background,
    stopping: asyncio.Event,
) -> bool:
    """Has a certificate of the service itself shown, and its renewals; False at the end."""

    def use(issued: Issued) -> None:
        tls.use(issued.full_chain_pem.encode(), (issued.private_key_pem or "").encode())

    issued = await _own_certificate(service_certificate, stopping)
    if issued is None:
        return False
    use(issued)
    background(service_certificate.follow(use, issued))
    return True


async def grpc_credentials(
    config: Config,
    service_certificate: ServiceCertificate,
    background: Background,
    stopping: asyncio.Event,
) -> grpc.ServerCredentials | None:
    """The listener's TLS credentials, which follow renewals without a restart."""
    tls = config.tls
    if tls.mode == "none":
        return None
    if tls.certificate is not None and tls.key is not None:
        return file_credentials(tls.certificate, tls.key)
    issued = await _own_certificate(service_certificate, stopping)
    if issued is None:
        return None
    own = OwnCredentials(issued)
    background(service_certificate.follow(own.use, issued))
    return own.credentials


async def _own_certificate(
    service_certificate: ServiceCertificate, stopping: asyncio.Event
) -> Issued | None:
    """A first certificate of the service itself, however long it takes; None at the end."""
    while not stopping.is_set():
        try:
            return await service_certificate.issue()
        except MeshmintError as error:
            log.warning(
                "not listening yet: the service's own certificate cannot be issued",
                reason=error.reason,
                problem=error.message,
                violations=[v.description for v in error.violations],
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), RETRY_SECONDS)
    return None
