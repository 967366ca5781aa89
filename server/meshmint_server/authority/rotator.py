"""The service's own part in the rotation: what is due is done, without anybody there.

Runs on the worker that has the upkeep. Should two believe they do, the store lets one
of them change the issuers, and the other looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog

from meshmint_server import telemetry
from meshmint_server.authority.rotation import (
    Rotation,
    RotationRules,
    RotationStep,
    decide,
    may_go_from,
)
from meshmint_server.authority.rotation_words import describe_rotation
from meshmint_server.authority.steadiness import Steadiness
from meshmint_server.authority.succession import Succession
from meshmint_server.errors import MeshmintError, StoreUnavailable
from meshmint_server.store import IssuerRow, Store

__all__ = ["Rotator", "Upstream"]

log = structlog.get_logger(__name__)

_FIRST_REST: Final = 1.0
_LONGEST_REST: Final = 600.0


class Upstream(Protocol):
    """Who signs the certificates of issuers."""

    async def sign(self, csr: str) -> bytes:
        """The certificates for a CSR; both PEM. Raises MeshmintError."""


class Rotator:
    """A duty of the leader.

    Args:
        store: Where issuers and the records of their certificates are.
        succession: What may be done with them.
        rules: The thresholds.
        upstream: Who signs the certificates of issuers; None: operators see to that.
        clock: The present.
        monotonic: Seconds that no setting of the clock changes.
    """

    def __init__(
        self,
        store: Store,
        succession: Succession,
        rules: RotationRules,
        upstream: Upstream | None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._succession = succession
        self._rules = rules
        self._upstream = upstream
        self._clock = clock
        self._monotonic = monotonic
        # An issuer that goes does not come back, so a clock that jumps is not believed at once.
        self._steadiness = Steadiness(store, monotonic, "the rotation")
        self._rests_until = 0.0
        self._rest = 0.0
        self._reported: tuple[object, ...] | None = None
        self._last_leaves: dict[str, datetime] = {}

    async def run(self) -> None:
        """Does what is due, which may be nothing.

        Raises:
            StoreUnavailable: The database does not answer, or somebody else was first.
        """
        now = self._clock()
        if not await self._steadiness.can_believe(now):
            return
        revision, rows = await self._store.load_issuers()
        rotation = decide(rows, now, self._rules)
        self._report(rotation, now)
        if self._monotonic() >= self._rests_until and await self._step(rotation, revision, now):
            return  # what was read is past: the next run looks anew
        if self._steadiness.may_end_things:
            await self._end_those_unused(rows, revision, now)

    async def _step(self, rotation: Rotation, revision: int, now: datetime) -> bool:
        """Does the step if it is due, and if it is the service's; whether it was tried."""
        is_due = rotation.due is not None and rotation.due <= now
        fetches = rotation.step in (RotationStep.PREPARE, RotationStep.IMPORT)
        try:
            if rotation.step is RotationStep.ACTIVATE:
                await self._succession.activate(rotation.next, at_revision=revision)
            elif fetches and is_due and self._upstream is not None:
                await self._fetch(self._upstream, rotation.next, revision)
            else:
                return False
        except StoreUnavailable:
            raise
        except MeshmintError as error:
            await self._failed(rotation.step, error)
        else:
            self._rest = 0.0
            log.info("a step of the rotation is done", step=rotation.step.value)
        return True

    async def _fetch(self, upstream: Upstream, name: str | None, revision: int) -> None:
        # With a name it waits already, and goes on where somebody was interrupted.
        row, csr = await self._succession.prepare(name, at_revision=revision)
        await self._succession.import_([await upstream.sign(csr)], name=row.name)

    async def _failed(self, step: RotationStep, error: MeshmintError) -> None:
        self._rest = min(max(2 * self._rest, _FIRST_REST), _LONGEST_REST)
        self._rests_until = self._monotonic() + self._rest
        telemetry.ROTATION_FAILURES.labels(step.value).inc()
        log.warning(
            "a step of the rotation failed, and will be tried again",
            step=step.value,
            reason=error.reason,
            problem=error.message,
            seconds=self._rest,
        )
        name = (await self._succession.rotation()).next
        if name is not None:
            await self._store.note_issuer_failure(name, error.message)

    async def _end_those_unused(
        self, rows: Sequence[IssuerRow], revision: int, now: datetime
    ) -> None:
        for row in rows:
            # The records are asked only when all else is past, and again only after the
            # last certificate that they knew of.
            known = self._last_leaves.get(row.name)
            due = may_go_from(row, known, self._rules)
            if due is None or now < due:
                continue
            latest = await self._succession.latest_leaf(row.name)
            if latest is not None:
                self._last_leaves[row.name] = latest
            due = may_go_from(row, latest, self._rules)
            if due is not None and due <= now:
                await self._succession.remove(row.name, at_revision=revision)
                log.info("nothing live chains to an issuer: it is gone", issuer=row.name)
                return  # the next one at the next run, at the revision that it then has

    def _report(self, rotation: Rotation, now: datetime) -> None:
        """Writes every change into the log once, as loud as it is urgent."""
        state = (rotation.step, rotation.next, rotation.obstacle, rotation.is_urgent)
        if state == self._reported:
            return
        self._reported = state
        needs_somebody = not rotation.is_automatic and (rotation.due is None or rotation.due <= now)
        write = log.error if rotation.is_urgent else log.warning if needs_somebody else log.info
        write(
            "the rotation of the issuer",
            step=rotation.step.value,
            active=rotation.active,
            next=rotation.next,
            automatic=rotation.is_automatic,
            description=describe_rotation(rotation),
        )
