"""Who signs after whom, as the configuration has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from meshmint_server.app.openers import open_keyring, open_store
from meshmint_server.authority import Locations, RotationRules, Succession, UpstreamCommand
from meshmint_server.config import Config
from meshmint_server.keys import KeyRing
from meshmint_server.store import Store

__all__ = ["build_succession", "build_upstream", "open_succession", "rotation_rules"]

# SPIFFE Federation section 3.3: three to five refresh hints.
_REFRESHES = 5


def rotation_rules(config: Config) -> RotationRules:
    """The thresholds of the configuration."""
    rotation = config.rotation
    return RotationRules(
        publish_for=rotation.publish_for or _REFRESHES * config.bundle_endpoint.refresh_hint,
        longest_leaf=max(config.max_ttl, config.tls.lifetime),
        prepare_before=rotation.prepare_before,
        activate_before=rotation.activate_before,
        has_upstream=rotation.upstream is not None,
    )


def build_succession(config: Config, store: Store, keyring: KeyRing) -> Succession:
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
