"""JWT-SVIDs and their keys, as the configuration has them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshmint_server.app.openers import open_keyring, open_store
from meshmint_server.authority import (
    IssuerBook,
    JwtKeyBook,
    JwtKeyRotator,
    JwtKeyRules,
    JwtKeySuccession,
)
from meshmint_server.config import Config
from meshmint_server.http_api import JwtPublication
from meshmint_server.keys import Keys
from meshmint_server.policy import LONGEST_TTL
from meshmint_server.store import Store

__all__ = [
    "build_jwt_key_rotator",
    "build_jwt_publication",
    "jwt_key_rules",
    "open_jwt_key_succession",
    "refresh_together",
]


def jwt_key_rules(config: Config) -> JwtKeyRules:
    """The thresholds of the configuration."""
    return JwtKeyRules(
        is_enabled=config.jwt_svid.enabled,
        period=config.jwt_svid.period,
        publish_for=config.jwt_key_published_for,
        longest_token=LONGEST_TTL,
    )


def build_jwt_key_rotator(config: Config, store: Store, keyring: Keys) -> JwtKeyRotator:
    """What the service does by itself for the keys that sign JWT-SVIDs."""
    return JwtKeyRotator(store, JwtKeySuccession(store, keyring, jwt_key_rules(config)))


@asynccontextmanager
async def open_jwt_key_succession(config: Config) -> AsyncIterator[JwtKeySuccession]:
    """The keys for JWT-SVIDs, for a command: with a store and keys of its own."""
    async with open_store(config) as store, open_keyring(config) as keyring:
        yield JwtKeySuccession(store, keyring, jwt_key_rules(config))


def build_jwt_publication(config: Config, keys: JwtKeyBook) -> JwtPublication:
    """What verifiers that know OpenID Connect are told."""
    settings = config.jwt_svid
    return JwtPublication(
        keys, settings.enabled, settings.issuer, settings.path, config.bundle_endpoint.refresh_hint
    )


async def refresh_together(issuers: IssuerBook, jwt_keys: JwtKeyBook) -> None:
    """Reads issuers and keys until both are of one revision: there is a trust bundle then.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    await issuers.refresh()
    await jwt_keys.refresh()
    while issuers.revision != jwt_keys.revision:
        await issuers.refresh()
        await jwt_keys.refresh()
