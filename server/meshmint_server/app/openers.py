"""What commands and workers open alike: the store and the signing keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshmint_server.config import Config
from meshmint_server.keys import KeyRing, RemoteKeyRing
from meshmint_server.store import Store

__all__ = ["open_keyring", "open_signing_process", "open_store", "open_store_as_it_is"]


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
    """The signing keys in this process, which does its work and ends."""
    keyring = config.keys.build()
    try:
        yield keyring
    finally:
        await keyring.close()


@asynccontextmanager
async def open_signing_process(config: Config) -> AsyncIterator[RemoteKeyRing]:
    """The signing keys in a process of their own, for one that talks to strangers."""
    keyring = RemoteKeyRing(config.keys, log_format=config.log.format, log_level=config.log.level)
    try:
        yield keyring
    finally:
        await keyring.close()
