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
# A database that is well takes milliseconds. Whoever asks waits no longer for it.
_CATCH_UP_SECONDS = 1.0


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
        self._is_answered = True
        self._look: asyncio.Task[None] | None = None
        self._next_look: asyncio.Task[None] | None = None

    @property
    def position(self) -> int:
        """The sequence of the last revocation that was told; -1 before the first look."""
        return self._position

    @property
    def is_current(self) -> bool:
        """Whether every revocation was told, but for those of the last moments."""
        return self._position >= 0 and self._monotonic() - self._read_at < self._patience

    async def catch_up(self) -> None:
        """Tells what was committed before this call, if the database answers soon.

        If it does not, nobody waits for it again before it has answered `follow`.
        """
        if not self._is_answered:
            return
        try:
            async with asyncio.timeout(_CATCH_UP_SECONDS):
                await self.refresh()
        except (StoreUnavailable, TimeoutError):
            self._is_answered = False

    async def refresh(self) -> None:
        """Tells what was committed before this call. Those who call at a time share a look.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        # The look that is under way may have begun before what this caller has to hear of.
        if self._next_look is None:
            self._next_look = asyncio.create_task(self._look_after(self._look))
            self._next_look.add_done_callback(_mark_as_seen)
        await asyncio.shield(self._next_look)

    async def _look_after(self, other: asyncio.Task[None] | None) -> None:
        if other is not None:
            await asyncio.wait((other,))
        self._look, self._next_look = self._next_look, None
        await self._read()

    async def _read(self) -> None:
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
        self._is_answered = True

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


def _mark_as_seen(look: asyncio.Task[None]) -> None:
    if not look.cancelled():
        look.exception()  # for when everybody who waited has gone
