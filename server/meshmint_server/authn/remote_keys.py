"""Verification keys that an issuer publishes over HTTPS.

An outage of the issuer must not become ours: keys once fetched are served, up
to a limit, while it is down. And a caller must not make us fetch: unknown key
ids cause one look per cool-down, however many tokens carry them.

A token is refused for its key id only by keys that were asked for after it was
made. With older ones it may be that they know its key no more than we do.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Protocol

import structlog

from meshmint_server.authn.clock import Clock
from meshmint_server.authn.key_set import InvalidKeys, KeySet, parse_jwks
from meshmint_server.authn.waiting import WaitingRoom
from meshmint_server.errors import VerifierUnavailable
from meshmint_server.single_flight import SingleFlight

__all__ = ["Freshness", "JwksFetch", "RemoteKeys"]

FIRST_BACK_OFF = 1.0

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Freshness:
    """How often keys are fetched. All in seconds.

    Attributes:
        refresh_interval: Age at which keys are fetched again, in the background.
        cool_down: Least time between two looks for an unknown key id, and the
            longest back-off after failures.
        max_stale: Age past which keys are no longer used.
    """

    refresh_interval: float
    cool_down: float
    max_stale: float


class JwksFetch(Protocol):
    """Gets a JWK set from where it is published."""

    async def fetch(self) -> bytes:
        """The set as it is now. Ends by itself.

        Raises:
            VerifierUnavailable: It cannot be had.
        """

    async def close(self) -> None:
        """Lets go of connections."""


class RemoteKeys:
    """Keys of one issuer, fetched when needed and kept.

    Args:
        source: Gets the JWK set.
        freshness: How often.
        leeway: Seconds by which clocks may differ.
        max_waiting: Calls that may wait for a fetch at one time.
        purpose: What the keys are, in words for messages.
        clock: The clock.
    """

    def __init__(
        self,
        source: JwksFetch,
        *,
        freshness: Freshness,
        leeway: float,
        max_waiting: int,
        purpose: str,
        clock: Clock,
    ) -> None:
        self._source = source
        self._freshness = freshness
        self._leeway = leeway
        self._waiting = WaitingRoom(max_waiting, purpose)
        self._purpose = purpose
        self._now = clock.now
        self._monotonic = clock.monotonic
        self._flight: SingleFlight[str, KeySet] = SingleFlight()
        self._raw = b""
        self._keys: KeySet | None = None
        self._fetched_at = float("-inf")
        self._asked_at = float("-inf")
        self._look_again_at = float("-inf")
        self._failures = 0
        self._back_off_until = float("-inf")

    def current(self) -> KeySet | None:
        """The keys at hand, unless too old. Starts a fetch in the background when one is due."""
        if self._keys is None:
            return None
        now = self._monotonic()
        age = now - self._fetched_at
        if age > self._freshness.max_stale:
            return None
        if age > self._freshness.refresh_interval and now >= self._back_off_until:
            self._flight.join("", self._refresh)
        return self._keys

    async def load(self) -> KeySet:
        """The keys at hand, or fetched now."""
        return self.current() or await self._fetched(self._refresh)

    async def newer_than(self, keys: KeySet, *, made_at: float | None) -> KeySet:
        """The keys after a look for newer ones, at most one look per cool-down."""
        current = self.current()
        if current is not None and current is not keys:
            return current
        is_under_way = bool(self._flight)
        wait = self._look_again_at - self._monotonic()
        if is_under_way or wait <= 0:
            newer = await self._fetched(self._look)
            if newer is not keys or not is_under_way:
                return newer
            wait = self._look_again_at - self._monotonic()
        if made_at is not None and made_at + self._leeway >= self._asked_at:
            raise VerifierUnavailable(
                f"{self._purpose} may have changed since they were last fetched; "
                "the token was neither accepted nor refused, try again",
                reason="KEY_NOT_YET_KNOWN",
                retry_after=max(wait, FIRST_BACK_OFF),
            )
        return keys

    async def close(self) -> None:
        """Ends a fetch that is under way, and lets go of connections."""
        await self._flight.close()
        await self._source.close()

    async def _fetched(self, work: Callable[[], Coroutine[None, None, KeySet]]) -> KeySet:
        wait = self._back_off_until - self._monotonic()
        if wait > 0 and not self._flight:
            raise VerifierUnavailable(
                f"{self._purpose} cannot be fetched at present; "
                "the token was neither accepted nor refused, try again",
                retry_after=wait,
            )
        with self._waiting.place():
            return await self._flight.run("", work)

    async def _look(self) -> KeySet:
        """A refresh that starts the cool-down; one that fails starts the back-off instead."""
        keys = await self._refresh()
        self._look_again_at = self._monotonic() + self._freshness.cool_down
        return keys

    async def _refresh(self) -> KeySet:
        asked_at = self._now()
        try:
            raw = await self._source.fetch()
            keys = self._keys if raw == self._raw and self._keys else self._parse(raw)
            if self._keys is not None and keys.has_keys_of(self._keys):
                # Another spelling, as of another replica, voids nothing that rests on them.
                keys = self._keys
        except VerifierUnavailable as error:
            self._failures += 1
            back_off = FIRST_BACK_OFF * 2 ** min(self._failures - 1, 10)
            back_off = min(back_off, self._freshness.cool_down)
            self._back_off_until = self._monotonic() + max(back_off, error.retry_after or 0.0)
            raise
        self._raw, self._keys = raw, keys
        self._asked_at = asked_at
        self._fetched_at = self._monotonic()
        self._failures = 0
        self._back_off_until = float("-inf")
        return keys

    def _parse(self, raw: bytes) -> KeySet:
        try:
            keys = parse_jwks(raw)
        except InvalidKeys as error:
            _log.warning("keys unusable", keys=self._purpose, problem=str(error))
            raise VerifierUnavailable(
                f"{self._purpose} are not what they should be; an operator must look at their URL"
            ) from error
        if keys.skipped or not keys.keys:
            _log.warning(
                "keys skipped", keys=self._purpose, skipped=keys.skipped, kept=len(keys.keys)
            )
        return keys
