"""The composition root: configuration in, running listeners out.

Nothing else builds objects from the configuration. One worker is one process
with its own login to the token, its own database pool and its own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from multiprocessing.connection import Connection

import grpc
import structlog

from meshmint_server import telemetry
from meshmint_server.audit import AuditLog, configure_logging
from meshmint_server.authn import Authenticators
from meshmint_server.authority import IssuerBook, TrustBundleFeed
from meshmint_server.config import BundleEndpointSettings, Config, ConfigError
from meshmint_server.errors import MeshmintError
from meshmint_server.grpc_api import (
    AdminService,
    CertificateService,
    Edge,
    GrpcListener,
    OwnCredentials,
    file_credentials,
)
from meshmint_server.http_api import (
    CertificateFiles,
    ServerTls,
    bind,
    build_bundle_endpoint,
    build_http_api,
    serve_http,
)
from meshmint_server.issuance import (
    Administration,
    Issued,
    Mint,
    ReadinessProbe,
    RoleBook,
    ServiceCertificate,
    service_spiffe_id,
)
from meshmint_server.keys import KeyRing
from meshmint_server.policy import Bounds, ReservedNames
from meshmint_server.store import Store

__all__ = [
    "EXIT_CONFIG",
    "EXIT_STUCK",
    "open_keyring",
    "open_store",
    "open_store_as_it_is",
    "run_worker",
]

log = structlog.get_logger(__name__)

# sysexits.h: EX_CONFIG and EX_UNAVAILABLE.
EXIT_CONFIG = 78
EXIT_STUCK = 69

REFRESH_SECONDS = 0.25
PROBE_SECONDS = 5.0
WATCH_SECONDS = 1.0
BEAT_SECONDS = 1.0
RETRY_SECONDS = 2.0
STUCK_SECONDS = 30.0


@asynccontextmanager
async def open_store(config: Config) -> AsyncIterator[Store]:
    """The store, its schema brought up to date."""
    store = Store.open(config.store)
    try:
        await store.migrate()
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_store_as_it_is(config: Config) -> AsyncIterator[Store]:
    """The store for a look: no file is made, no mode is changed, nothing is migrated."""
    store = Store.open(config.store, as_it_is=True)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def open_keyring(config: Config) -> AsyncIterator[KeyRing]:
    """The signing keys."""
    keyring = config.keys.build()
    try:
        yield keyring
    finally:
        await keyring.close()


def run_worker(config: Config, pipe: Connection) -> None:
    """Runs one worker until SIGTERM, or until the supervisor is gone.

    Exits with EXIT_CONFIG where a restart cannot help.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logging(config.log.format, config.log.level)
    try:
        asyncio.run(_serve(config, pipe))
    except (ConfigError, OSError) as error:
        log.error("cannot serve", problem=str(error))
        sys.exit(EXIT_CONFIG)
    except MeshmintError as error:
        log.error("cannot serve", problem=error.message, reason=error.reason)
        sys.exit(1)


async def _serve(config: Config, pipe: Connection) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    async with AsyncExitStack() as stack:
        background = await stack.enter_async_context(_background())
        background(_beat(pipe, stopping))
        store = await stack.enter_async_context(open_store(config))
        keyring = await stack.enter_async_context(open_keyring(config))
        background(_end_when_stuck(keyring))

        audit = AuditLog()
        try:
            reserved = ReservedNames.of_service(
                service_spiffe_id(config.trust_domain),
                config.tls.dns_names,
                config.tls.ip_addresses,
            )
        except ValueError as error:
            raise ConfigError(f"tls: dns_names, ip_addresses: {error}") from error
        bounds = Bounds(config.trust_domain, config.default_ttl, config.max_ttl, reserved)
        roles = RoleBook(store)
        issuers = IssuerBook(store, keyring, config.trust_domain)
        bundles = TrustBundleFeed(
            issuers,
            config.trust_domain,
            refresh_hint=config.bundle_endpoint.refresh_hint,
            limit=config.max_watchers,
        )
        probe = ReadinessProbe(issuers, store)
        try:
            authenticators = Authenticators.build(
                config.authenticators, config.trust_domain, on_check=_count_token_check
            )
        except ValueError as error:
            raise ConfigError(f"authenticators: {error}") from error
        stack.push_async_callback(authenticators.close)
        mint = Mint(roles=roles, issuers=issuers, store=store, bounds=bounds, audit=audit)
        stack.callback(mint.close)
        administration = Administration(
            admins=config.admins,
            store=store,
            roles=roles,
            trust_domain=config.trust_domain,
            audit=audit,
        )
        edge = Edge(authenticators, audit, config.request_time_limit.total_seconds())
        listener = GrpcListener(
            CertificateService(edge, mint, issuers, bundles, config.trust_domain),
            AdminService(edge, administration),
        )

        await roles.refresh()
        await issuers.refresh()
        background(roles.follow(REFRESH_SECONDS))
        background(_follow_issuers(issuers))
        http = bind(config.http.listen.host, config.http.listen.port)
        await stack.enter_async_context(serve_http(build_http_api(probe), http))
        await probe.probe()
        background(probe.follow(PROBE_SECONDS))

        service_certificate = ServiceCertificate(
            mint,
            issuers,
            trust_domain=config.trust_domain,
            dns_names=config.tls.dns_names,
            ip_addresses=config.tls.ip_addresses,
            lifetime=config.tls.lifetime,
        )
        credentials = await _credentials(config, service_certificate, background, stopping)
        if stopping.is_set():
            return
        endpoint = _BundleEndpoint(config.bundle_endpoint, background)
        listener.listen(str(config.listen), credentials)
        await listener.start()
        probe.on_change(listener.readiness_listener())
        with contextlib.suppress(OSError):
            pipe.send("serving")
        log.info(
            "serving",
            address=str(config.listen),
            http=str(config.http.listen),
            tls=config.tls.mode,
            trust_domain=str(config.trust_domain),
            pid=os.getpid(),
        )
        await stack.enter_async_context(endpoint.serve(bundles, service_certificate, stopping))
        await stopping.wait()
        probe.stop("draining")
        bundles.close()
        await listener.stop(config.drain.total_seconds())


@asynccontextmanager
async def _background() -> AsyncIterator[Callable[[object], None]]:
    """Runs tasks until the end. One that dies of a bug takes the worker with it."""
    tasks: set[asyncio.Task[None]] = set()

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("bug: a background task died; the worker is replaced", exc_info=error)
            os._exit(1)

    def start(coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        task.add_done_callback(ended)
        tasks.add(task)

    try:
        yield start
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _count_token_check(authenticator: str, outcome: str) -> None:
    # Tokens that no authenticator takes are nobody's.
    telemetry.TOKEN_CHECKS.labels(authenticator or "none", outcome.lower()).inc()


async def _beat(pipe: Connection, stopping: asyncio.Event) -> None:
    """Tells the supervisor that the event loop lives, and stops when it is gone."""
    while True:
        try:
            pipe.send("beat")
        except OSError:
            stopping.set()
            return
        await asyncio.sleep(BEAT_SECONDS)


async def _end_when_stuck(keyring: KeyRing) -> None:
    """A PKCS#11 call cannot be cancelled: a worker whose call hangs is replaced."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        if keyring.is_stuck(STUCK_SECONDS):
            log.error("a call into the token hangs; the worker is replaced")
            os._exit(EXIT_STUCK)


async def _follow_issuers(issuers: IssuerBook) -> None:
    while True:
        try:
            await issuers.refresh()
        except MeshmintError as error:
            log.warning("issuers could not be refreshed", reason=error.reason)
        for issuer in issuers.published():
            telemetry.ISSUER_EXPIRY.labels(issuer.name, issuer.state.value).set(
                issuer.not_after.timestamp()
            )
        await asyncio.sleep(REFRESH_SECONDS)


class _BundleEndpoint:
    """The SPIFFE bundle endpoint, if it is configured.

    Made before the workers' other listeners, so that what is wrong with its files or
    address is known at the start; it serves once it has a certificate to show.

    Raises:
        ConfigError: The certificate files cannot be used.
        OSError: The address cannot be bound.
    """

    def __init__(
        self, settings: BundleEndpointSettings, background: Callable[[object], None]
    ) -> None:
        self._settings = settings
        self._background = background
        self._tls = ServerTls()
        if settings.listen is None:
            return
        if settings.certificate is not None and settings.key is not None:
            files = CertificateFiles(settings.certificate, settings.key, self._tls)
            try:
                files.load()
            except OSError as error:
                raise ConfigError(
                    f"bundle_endpoint: {settings.certificate} and {settings.key} cannot be used: "
                    f"{error}"
                ) from error
            background(files.follow())
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
        if self._settings.profile == "https_spiffe":
            issued = await _own_certificate(service_certificate, stopping)
            if issued is None:
                self._bound.close()
                yield
                return
            self._use(issued)
            self._background(service_certificate.follow(self._use, issued))
        application = build_bundle_endpoint(bundles, self._settings.path)
        async with serve_http(application, self._bound, self._tls.context):
            log.info("serving the bundle endpoint", address=str(self._settings.listen))
            yield

    def _use(self, issued: Issued) -> None:
        self._tls.use(issued.full_chain_pem.encode(), (issued.private_key_pem or "").encode())


async def _credentials(
    config: Config,
    service_certificate: ServiceCertificate,
    background: Callable[[object], None],
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
