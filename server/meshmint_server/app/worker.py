"""One worker: builds its objects from the configuration, serves, and drains.

Its own login to the token, its own database pool, its own event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import structlog
import uvloop

from meshmint_server import telemetry
from meshmint_server.app.background import background, beat
from meshmint_server.app.jwt_svids import (
    build_jwt_key_rotator,
    build_jwt_publication,
    refresh_together,
)
from meshmint_server.app.openers import open_signing_process, open_store
from meshmint_server.app.own_certificate import BundleEndpoint, LinkerdEntrance, grpc_credentials
from meshmint_server.app.parent import end_with_supervisor
from meshmint_server.app.succession import build_rotator, build_succession, show_rotation
from meshmint_server.app.upkeep import Duty, Upkeep
from meshmint_server.audit import AuditLog, configure_logging
from meshmint_server.authn import Authenticators
from meshmint_server.authority import (
    BundleFetcher,
    CrlBook,
    CrlPublisher,
    CrlTimes,
    FederatedBundles,
    Federation,
    IssuerBook,
    JwtKeyBook,
    Publication,
    TrustBundleFeed,
    forget_removed,
)
from meshmint_server.authority.ocsp import OcspResponder
from meshmint_server.config import Config, ConfigError
from meshmint_server.errors import MeshmintError
from meshmint_server.grpc_api import (
    AdminService,
    CertificateService,
    Edge,
    GrpcListener,
    IstioService,
    LinkerdService,
    Relay,
)
from meshmint_server.http_api import bind, build_http_api, serve_http
from meshmint_server.issuance import (
    Administration,
    Administrators,
    Admission,
    IssuerAdministration,
    JwtSvids,
    Mint,
    Naming,
    ReadinessProbe,
    ResponderCertificates,
    Revoker,
    RoleBook,
    ServiceCertificate,
    Tidy,
    forget_expired_replies,
    service_spiffe_id,
)
from meshmint_server.keys import RemoteKeyRing
from meshmint_server.policy import Bounds, ReservedNames
from meshmint_server.store import Store

__all__ = ["EXIT_CONFIG", "run_worker"]

log = structlog.get_logger(__name__)

EXIT_CONFIG = 78  # sysexits.h: EX_CONFIG

_MOST_OPEN_FILES = 65_536

REFRESH_SECONDS = 0.25
PROBE_SECONDS = 5.0
FORGET_SECONDS = 60.0
CRL_SECONDS = 1.0
ROTATION_SECONDS = 1.0
TIDY_SECONDS = 60.0
NAMING_SECONDS = 60.0
REPLIES_SECONDS = 5.0


def run_worker(config: Config, pipe: Connection) -> None:
    """Runs one worker until SIGTERM, or until the supervisor is gone.

    Exits with EXIT_CONFIG where a restart cannot help.
    """
    end_with_supervisor()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _allow_open_files()
    configure_logging(config.log.format, config.log.level)
    try:
        uvloop.run(_serve(config, pipe))
    except (ConfigError, OSError) as error:
        log.error("cannot serve", problem=str(error))
        sys.exit(EXIT_CONFIG)
    except MeshmintError as error:
        log.error("cannot serve", problem=error.message, reason=error.reason)
        sys.exit(1)


def _allow_open_files() -> None:
    """Takes as many as there may be: of the 1,024 that a shell gives, connections need them all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(config: Config, pipe: Connection) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    async with AsyncExitStack() as stack:
        start = await stack.enter_async_context(background())
        start(beat(pipe, stopping))
        store = await stack.enter_async_context(open_store(config))
        keyring = await stack.enter_async_context(open_signing_process(config))

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
        publication = Publication(config.publication.url, frozenset(config.publication.include))
        issuers = IssuerBook(store, keyring, config.trust_domain, publication)
        jwt_keys = JwtKeyBook(store, keyring, on_change=issuers.wake)
        crls = CrlBook(store)
        federations = [one.build() for one in config.federation]
        federated = FederatedBundles(store, federations)
        bundles = TrustBundleFeed(
            issuers,
            federated,
            config.trust_domain,
            refresh_hint=config.bundle_endpoint.refresh_hint,
            limit=config.max_watchers,
            jwt_keys=jwt_keys,
        )
        probe = ReadinessProbe(issuers, store)
        try:
            authenticators = Authenticators.build(
                config.authenticators, config.trust_domain, counter=_token_check_counter
            )
        except ValueError as error:
            raise ConfigError(f"authenticators: {error}") from error
        stack.push_async_callback(authenticators.close)
        admission = config.admission.build(config.workers)
        mint = Mint(
            roles=roles,
            issuers=issuers,
            store=store,
            bounds=bounds,
            audit=audit,
            admission=admission,
            on_key_trouble=probe.doubt,
        )
        stack.callback(mint.close)
        jwt_svids = JwtSvids(
            roles=roles,
            keys=jwt_keys,
            bounds=bounds,
            audit=audit,
            admission=admission,
            issuer=config.jwt_svid.issuer,
            is_enabled=config.jwt_svid.enabled,
            on_key_trouble=probe.doubt,
        )
        admins = Administrators(config.admins)
        revoker = Revoker(admins=admins, store=store, issuers=issuers, audit=audit)
        responder = OcspResponder(
            issuers, store, lifetime=config.ocsp.lifetime, max_cached=config.ocsp.max_cached
        )
        responder_certificates = ResponderCertificates(
            mint, issuers, responder.appoint, lifetime=config.ocsp.responder_lifetime
        )
        administration = Administration(
            admins=admins,
            store=store,
            roles=roles,
            trust_domain=config.trust_domain,
            audit=audit,
        )
        succession = build_succession(config, store, keyring)
        # In the supervisor's own folder: what a worker leaves that was killed, goes with it.
        beside = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
        private = stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-", dir=beside))
        relay = Relay(Path(private))
        edge = Edge(
            authenticators, audit, config.request_time_limit.total_seconds(), peers=relay.peers
        )
        certificates = CertificateService(
            edge,
            mint=mint,
            revoker=revoker,
            issuers=issuers,
            bundles=bundles,
            jwt_svids=jwt_svids,
            jwt_keys=jwt_keys,
            trust_domain=config.trust_domain,
        )
        listener = GrpcListener(
            certificates,
            AdminService(
                edge,
                administration,
                IssuerAdministration(
                    admins=admins, succession=succession, issuers=issuers, audit=audit
                ),
            ),
            edge.entrance,
            istio=_istio(config, edge, mint),
            linkerd=_linkerd(config, edge, mint),
            most_pending=config.admission.working + config.admission.waiting,
        )

        await roles.refresh()
        await refresh_together(issuers, jwt_keys)
        await succession.note_longest_leaf()
        await crls.refresh()
        start(roles.follow(REFRESH_SECONDS))
        start(_follow_issuers(issuers))
        start(jwt_keys.follow(REFRESH_SECONDS))
        if federations:
            await federated.refresh()
            start(federated.follow(REFRESH_SECONDS))
        start(crls.follow(REFRESH_SECONDS))
        publisher = CrlPublisher(issuers, store, _crl_times(config), url=publication.url)
        start(responder.feed.follow(REFRESH_SECONDS))
        start(show_rotation(succession))
        rotator = build_rotator(config, store, succession)
        duties = [
            Duty("crl", publisher.run, CRL_SECONDS),
            Duty("rotation", rotator.run, ROTATION_SECONDS),
            Duty("jwt-keys", build_jwt_key_rotator(config, store, keyring).run, ROTATION_SECONDS),
            Duty("names", Naming(store).run, NAMING_SECONDS),
            Duty("replies", partial(forget_expired_replies, store), REPLIES_SECONDS),
        ]
        if config.tidy.enabled:
            tidy = Tidy(store, keep=config.tidy.keep, interval=config.tidy.interval)
            pace = min(config.tidy.interval.total_seconds() / 4, TIDY_SECONDS)
            duties.append(Duty("tidy", tidy.run, pace))
        duties += _federation_duties(store, federations)
        start(Upkeep(store.leadership("upkeep"), duties).run())
        http = bind(config.http.listen.host, config.http.listen.port)
        application = build_http_api(
            probe,
            issuers,
            bundles,
            crls,
            responder,
            crl_max_age=config.crl.delay,
            jwt=build_jwt_publication(config, jwt_keys),
        )
        await stack.enter_async_context(serve_http(application, http))
        start(_show_waiting(keyring, admission))
        await probe.probe()
        start(probe.follow(PROBE_SECONDS))
        await responder_certificates.renew()
        start(responder_certificates.follow(REFRESH_SECONDS))

        service_certificate = ServiceCertificate(
            mint,
            issuers,
            trust_domain=config.trust_domain,
            dns_names=config.tls.dns_names,
            ip_addresses=config.tls.ip_addresses,
            lifetime=config.tls.lifetime,
        )
        credentials = await grpc_credentials(config, service_certificate, start, stopping)
        if stopping.is_set():
            return
        endpoint = BundleEndpoint(config.bundle_endpoint, start)
        linkerd = LinkerdEntrance(config, relay, start)
        listener.listen(str(config.listen), credentials)
        if config.linkerd.entrance is not None:
            listener.listen(relay.address, None)
        await listener.start()
        probe.on_change(listener.readiness_listener())
        with contextlib.suppress(OSError):
            pipe.send("serving")
        # What has been made so far stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        log.info(
            "serving",
            address=str(config.listen),
            http=str(config.http.listen),
            tls=config.tls.mode,
            trust_domain=str(config.trust_domain),
            pid=os.getpid(),
        )
        await stack.enter_async_context(endpoint.serve(bundles, service_certificate, stopping))
        await stack.enter_async_context(linkerd.serve(service_certificate, stopping))
        await stopping.wait()
        probe.stop("draining")
        bundles.close()
        certificates.draining.begin()
        relay.close()
        await listener.stop(config.drain.total_seconds())


def _istio(config: Config, edge: Edge, mint: Mint) -> IstioService | None:
    rules = config.istio.build()
    return None if rules is None else IstioService(edge, mint, rules)


def _linkerd(config: Config, edge: Edge, mint: Mint) -> LinkerdService | None:
    rules = config.linkerd.build(config.trust_domain)
    return None if rules is None else LinkerdService(edge, mint, rules)


def _federation_duties(store: Store, federations: Sequence[Federation]) -> list[Duty]:
    """One duty each, so that a slow endpoint delays no other."""
    forget = Duty("federation", partial(forget_removed, store, federations), FORGET_SECONDS)
    return [
        forget,
        *(
            Duty(f"federation {one.trust_domain}", BundleFetcher(one, store).keep_fresh, 1.0)
            for one in federations
        ),
    ]


def _crl_times(config: Config) -> CrlTimes:
    return CrlTimes(
        lifetime=config.crl.lifetime,
        interval=config.crl.interval,
        delay=config.crl.delay,
        delta_lifetime=config.crl.delta_lifetime,
    )


async def _show_waiting(keyring: RemoteKeyRing, admission: Admission) -> None:
    """Gauges at their present value: cheaper than counting each request up and down."""
    while True:
        telemetry.SIGNATURES_WAITING.set(keyring.waiting)
        telemetry.REQUESTS_WAITING.set(admission.waiting)
        await asyncio.sleep(REFRESH_SECONDS)


def _token_check_counter(authenticator: str, outcome: str) -> Callable[[], None]:
    # Tokens that no authenticator takes are nobody's.
    return telemetry.TOKEN_CHECKS.labels(authenticator or "none", outcome.lower()).inc


async def _follow_issuers(issuers: IssuerBook) -> None:
    shown: set[tuple[str, str]] = set()
    while True:
        try:
            await issuers.refresh()
        except MeshmintError as error:
            log.warning("issuers could not be refreshed", reason=error.reason)
        present = {(one.name, one.state.value): one for one in issuers.published()}
        for labels, issuer in present.items():
            telemetry.ISSUER_EXPIRY.labels(*labels).set(issuer.not_after.timestamp())
        for labels in shown - present.keys():
            # A series of several processes cannot be taken back: no alarm for what is over.
            telemetry.ISSUER_EXPIRY.labels(*labels).set(math.inf)
        shown |= present.keys()
        await asyncio.sleep(REFRESH_SECONDS)
