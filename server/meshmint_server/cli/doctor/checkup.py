"""All checks, in order. One that fails stops no other."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

from meshmint_server.app import open_keyring, open_store_as_it_is, rotation_rules
from meshmint_server.cli.doctor.authenticators import check_authenticators
from meshmint_server.cli.doctor.clocks import check_clocks
from meshmint_server.cli.doctor.configuration import check_configuration, load_configuration
from meshmint_server.cli.doctor.crls import check_crls
from meshmint_server.cli.doctor.federation import check_federation
from meshmint_server.cli.doctor.finding import Finding, error, warning
from meshmint_server.cli.doctor.issuers import check_issuers
from meshmint_server.cli.doctor.jwt_svids import check_jwt_svids
from meshmint_server.cli.doctor.keys import check_keys
from meshmint_server.cli.doctor.mesh import check_mesh_protocols
from meshmint_server.cli.doctor.roles import check_admins, check_roles
from meshmint_server.cli.doctor.store import (
    StoreContents,
    check_store,
    missing_store,
    not_answering,
)
from meshmint_server.cli.doctor.tls import check_bundle_endpoint, check_tls
from meshmint_server.config import Config
from meshmint_server.errors import StoreUnavailable
from meshmint_server.keys import InvalidKeyUri

__all__ = ["examine"]

_UNSEEN = "They could not be checked: the store could not be read."
_SEE_STORE = "See what is said of the store."


async def examine(path: Path) -> AsyncIterator[Finding]:
    """Everything there is to find about the service that a configuration describes."""
    config, loaded = load_configuration(path)
    yield loaded
    for finding in check_configuration(path, config):
        yield finding
    if config is None:
        return
    contents = StoreContents()
    async for finding in _store(config, contents):
        yield finding
    now = datetime.now(UTC)
    for finding in check_clocks(now, contents.clock, contents.issuers):
        yield finding
    if contents.issuers is None:
        yield warning("issuers", _UNSEEN, _SEE_STORE)
    else:
        for finding in check_issuers(
            contents.issuers, config.trust_domain, rotation_rules(config), now
        ):
            yield finding
    async for finding in _keys(config, contents):
        yield finding
    if contents.issuers is not None and contents.crls is not None:
        for finding in check_crls(contents.issuers, contents.crls, config, now):
            yield finding
    for finding in check_authenticators(config):
        yield finding
    if contents.roles is None:
        yield warning("roles", _UNSEEN, _SEE_STORE)
    else:
        for finding in (
            *check_roles(contents.roles, config, contents.issuers),
            *check_mesh_protocols(config, contents.roles),
        ):
            yield finding
    if contents.jwt_keys is not None:
        for finding in check_jwt_svids(contents.jwt_keys, contents.roles or (), config, now):
            yield finding
    if contents.federated is not None:
        for finding in check_federation(
            config.federation, contents.federated, contents.fetch_failures, now
        ):
            yield finding
    for finding in (
        *check_admins(config),
        *check_tls(config.tls, now),
        *check_bundle_endpoint(config.bundle_endpoint, now),
    ):
        yield finding


async def _store(config: Config, contents: StoreContents) -> AsyncIterator[Finding]:
    missing = missing_store(config)
    if missing is not None:
        yield missing
        return
    try:
        async with open_store_as_it_is(config) as store:
            async for finding in check_store(store, contents):
                yield finding
    except StoreUnavailable as fault:
        yield not_answering(fault)


async def _keys(config: Config, contents: StoreContents) -> AsyncIterator[Finding]:
    try:
        async with open_keyring(config) as keyring:
            async for finding in check_keys(
                keyring, contents.issuers or (), contents.jwt_keys or ()
            ):
                yield finding
    except InvalidKeyUri as fault:
        yield error("keys", fault.message, "Correct 'keys' in the configuration.")
