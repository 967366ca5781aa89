"""What commands and workers open alike: the store and the signing keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshmint_server.config import Config
from meshmint_server.keys import KeyRing
from meshmint_server.store import Store

__all__ = ["open_keyring", "open_store", "open_store_as_it_is"]


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
