"""Who signs after whom, as the configuration has it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog

from meshmint_server import telemetry
from meshmint_server.app.openers import open_keyring, open_store
from meshmint_server.authority import (
    Locations,
    RotationRules,
    RotationStep,
    Rotator,
    Succession,
    UpstreamCommand,
)
from meshmint_server.config import REFRESHES, Config
from meshmint_server.errors import MeshmintError
from meshmint_server.keys import Keys
from meshmint_server.store import Store

__all__ = [
    "build_rotator",
    "build_succession",
    "build_upstream",
    "open_succession",
    "rotation_rules",
    "show_rotation",
]

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 2.0


def rotation_rules(config: Config) -> RotationRules:
    """The thresholds of the configuration."""
    rotation = config.rotation
    return RotationRules(
        publish_for=rotation.publish_for or REFRESHES * config.bundle_endpoint.refresh_hint,
        longest_leaf=max(config.max_ttl, config.tls.lifetime),
        prepare_before=rotation.prepare_before,
        activate_before=rotation.activate_before,
        has_upstream=rotation.upstream is not None,
    )


def build_succession(config: Config, store: Store, keyring: Keys) -> Succession:
    """The issuers of a service."""
    return Succession(
        store,
        keyring,
        trust_domain=config.trust_domain,
        rules=rotation_rules(config),
        algorithm=config.rotation.algorithm,
        clock=lambda: datetime.now(UTC),
        crl_shards=config.publication.crl_shards,
        crl_url=config.publication.url,
        root_locations=Locations(
            crl=config.publication.root.crl,
            ocsp=config.publication.root.ocsp,
            ca=config.publication.root.ca,
        ),
    )


def build_upstream(config: Config) -> UpstreamCommand | None:
    """Who signs the certificates of issuers; None where operators see to that."""
    upstream = config.rotation.upstream
    return None if upstream is None else UpstreamCommand(upstream.command, upstream.time_limit)


@asynccontextmanager
async def open_succession(config: Config) -> AsyncIterator[Succession]:
    """The issuers, for a command: with a store and keys of its own."""
    async with open_store(config) as store, open_keyring(config) as keyring:
        yield build_succession(config, store, keyring)


def build_rotator(config: Config, store: Store, succession: Succession) -> Rotator:
    """What the service does by itself for the succession."""
    return Rotator(store, succession, rotation_rules(config), build_upstream(config))


async def show_rotation(succession: Succession) -> None:
    """Keeps the metrics of the rotation, and what depends on it, up to date: in every worker."""
    while True:
        try:
            await succession.note_longest_leaf()
            rotation = await succession.rotation()
        except MeshmintError as error:
            log.warning("the rotation could not be looked at", reason=error.reason)
        else:
            for step in RotationStep:
                telemetry.ROTATION_STEP.labels(step.value).set(int(step is rotation.step))
            due = math.inf if rotation.due is None else rotation.due.timestamp()
            telemetry.ROTATION_DUE.set(due)
            telemetry.ROTATION_URGENT.set(int(rotation.is_urgent))
        await asyncio.sleep(_LOOK_SECONDS)
