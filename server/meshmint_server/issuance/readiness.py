"""Whether this worker can issue: a real signature with the real key, made lately."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from meshmint_server import telemetry
from meshmint_server.authority import IssuerBook
from meshmint_server.errors import MeshmintError
from meshmint_server.keys import KeyFault, default_algorithm
from meshmint_server.store import Store

__all__ = ["Readiness", "ReadinessProbe"]

log = structlog.get_logger(__name__)

_PROBE = b"meshmint readiness probe: not a certificate"
# Between two probes, however much is in doubt.
_SHORTEST_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Readiness:
    """Outcome of the last probe; the reason is for operators and holds no secret."""

    is_ready: bool
    reason: str


class ReadinessProbe:
    """Probes key and store, and tells whoever wants to know about changes."""

    def __init__(self, issuers: IssuerBook, store: Store) -> None:
        self._issuers = issuers
        self._store = store
        self._listeners: list[Callable[[Readiness], None]] = []
        self._doubt = asyncio.Event()
        self._has_stopped = False
        self.current = Readiness(False, "starting")

    def on_change(self, listener: Callable[[Readiness], None]) -> None:
        """Calls the listener at every change, and once now."""
        self._listeners.append(listener)
        listener(self.current)

    async def probe(self, time_limit: float = 5.0) -> Readiness:
        """Makes a signature with the active issuer's key, verifies it, and commits to the store.

        Asking the store is not enough: one that is locked, full or a standby still answers.

        Args:
            time_limit: Seconds for the signature, and as many for the commit.
        """
        slow = "the test signature took too long"
        try:
            async with asyncio.timeout(time_limit):
                issuer = self._issuers.active()
                algorithm = default_algorithm(issuer.key.public_key)
                signature = await issuer.key.sign(_PROBE, algorithm)
                if not algorithm.is_valid(issuer.key.public_key, signature, _PROBE):
                    raise KeyFault("the key made a signature that does not verify")
            slow = "the store took too long to commit"
            async with asyncio.timeout(time_limit):
                await self._store.prove_writing()
            outcome = Readiness(True, "ready")
        except MeshmintError as error:
            outcome = Readiness(False, f"{error.reason}: {error.message}")
            if isinstance(error, KeyFault):
                log.debug("probe failed", detail=error.detail)
        except TimeoutError:
            outcome = Readiness(False, slow)
        self._publish(outcome)
        return outcome

    def stop(self, reason: str) -> None:
        """Says not ready from now on, as when draining, whatever a probe finds."""
        self._publish(Readiness(False, reason))
        self._has_stopped = True

    def _publish(self, outcome: Readiness) -> None:
        if self._has_stopped or outcome == self.current:
            return
        self.current = outcome
        telemetry.READY.set(int(outcome.is_ready))
        report = log.info if outcome.is_ready else log.warning
        report("readiness changed", ready=outcome.is_ready, reason=outcome.reason)
        for listener in self._listeners:
            listener(outcome)

    def doubt(self) -> None:
        """Has `follow` probe soon: something failed as if this worker could not issue."""
        self._doubt.set()

    async def follow(self, interval: float) -> None:
        """Probes for ever: every ``interval`` seconds, and soon while not ready or in doubt."""
        while True:
            await asyncio.sleep(_SHORTEST_SECONDS)
            if self.current.is_ready:
                with suppress(TimeoutError):
                    async with asyncio.timeout(interval):
                        await self._doubt.wait()
            self._doubt.clear()
            await self.probe()
