"""A duty of the leader after an upgrade: names for records that are found by none yet."""

from __future__ import annotations

import asyncio
import time

import structlog

from meshmint_server.store import Store

__all__ = ["Naming"]

log = structlog.get_logger(__name__)

_PART = 250


class Naming:
    """Has the store name its older records, bit by bit, until all have names."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_done = False

    async def run(self) -> None:
        """Does what there is to do, which after the first time is nothing.

        Raises:
            StoreUnavailable: The rest is left to the next run.
        """
        if self._is_done:
            return
        parts = 0
        started = time.perf_counter()
        while await self._store.name_records(_PART):
            parts += 1
            # Whoever issues gets the database for at least as long as this had it.
            await asyncio.sleep(time.perf_counter() - started)
            started = time.perf_counter()
        self._is_done = True
        if parts:
            log.info("the records of before are found by their names now")
