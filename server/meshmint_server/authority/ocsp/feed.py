"""Every revocation as it comes, for whoever keeps what a revocation makes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from meshmint_server.errors import StoreUnavailable
from meshmint_server.store import Store

__all__ = ["RevocationFeed"]

log = structlog.get_logger(__name__)

_PART = 1000


class RevocationFeed:
    """Reads the store's revocations in the order of their commits.

    Args:
        on_revoked: Told the serial number of every certificate revoked since the start.
        on_lost: Told that revocations may have been missed: the store was put back to
            an earlier state.
        patience: Seconds without a look into the store, after which nobody knows
            whether anything was revoked.
    """

    def __init__(
        self,
        store: Store,
        *,
        on_revoked: Callable[[int], None],
        on_lost: Callable[[], None],
        patience: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._on_revoked = on_revoked
        self._on_lost = on_lost
        self._patience = patience
        self._monotonic = monotonic
        self._position = -1
        self._read_at = 0.0

    @property
    def position(self) -> int:
        """The sequence of the last revocation that was told; -1 before the first look."""
        return self._position

    @property
    def is_current(self) -> bool:
        """Whether every revocation was told, but for those of the last moments."""
        return self._position >= 0 and self._monotonic() - self._read_at < self._patience

    async def refresh(self) -> None:
        """Tells what has come.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        started = self._monotonic()
        latest = await self._store.latest_revocation()
        if latest < self._position:
            # Tidied away, or the store was restored from a backup. Who knows?
            self._on_lost()
        if not 0 <= self._position < latest:
            self._position = latest
        while self._position < latest:
            rows = await self._store.revocations_after(self._position, _PART)
            for row in rows:
                self._on_revoked(int(row.serial_number, 16))
            self._position = rows[-1].sequence if rows else latest
        self._read_at = started

    async def follow(self, interval: float) -> None:
        """Refreshes for ever, every `interval` seconds."""
        while True:
            was_current = self.is_current
            try:
                await self.refresh()
            except StoreUnavailable as error:
                if was_current and not self.is_current:
                    log.warning(
                        "revocations could not be read for a while; nothing is called good",
                        reason=error.reason,
                    )
            await asyncio.sleep(interval)
