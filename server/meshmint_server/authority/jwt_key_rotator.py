"""The service's own part in the rotation of the keys that sign JWT-SVIDs: what is due is done.

Runs on the worker that has the upkeep. Should two believe they do, the store lets one of
them change the keys, and the other looks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

import structlog

from meshmint_server import telemetry
from meshmint_server.authority.jwt_key_succession import JwtKeySuccession
from meshmint_server.authority.jwt_rotation import JwtKeys, JwtKeyStep
from meshmint_server.authority.steadiness import Steadiness
from meshmint_server.errors import MeshmintError, StoreUnavailable
from meshmint_server.store import Store

__all__ = ["JwtKeyRotator"]

log = structlog.get_logger(__name__)

_FIRST_REST: Final = 1.0
_LONGEST_REST: Final = 600.0
# While no key signs, callers wait for it.
_LONGEST_URGENT_REST: Final = 10.0


class JwtKeyRotator:
    """A duty of the leader.

    Args:
        store: Whose clock is compared with ours.
        succession: What may be done with the keys.
        clock: The present.
        monotonic: Seconds that no setting of the clock changes.
    """

    def __init__(
        self,
        store: Store,
        succession: JwtKeySuccession,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._succession = succession
        self._clock = clock
        self._monotonic = monotonic
        self._steadiness = Steadiness(store, monotonic, "the rotation of the keys for JWT-SVIDs")
        self._rests_until = 0.0
        self._rest = 0.0

    async def run(self) -> None:
        """Does what is due, which may be nothing.

        Raises:
            StoreUnavailable: The database does not answer, or somebody else was first.
        """
        if not await self._steadiness.can_believe(self._clock()):
            return
        revision, _, next_ = await self._succession.look()
        if next_.step is JwtKeyStep.NONE or self._monotonic() < self._rests_until:
            return
        if next_.step is JwtKeyStep.REMOVE and not self._steadiness.may_end_things:
            return
        try:
            key_id = await self._do(next_, revision)
        except StoreUnavailable:
            raise
        except MeshmintError as error:
            self._failed(next_, error)
        else:
            self._rest = 0.0
            log.info("a step with a key for JWT-SVIDs is done", step=next_.step.value, key=key_id)

    async def _do(self, next_: JwtKeys, revision: int) -> str:
        if next_.step is JwtKeyStep.PREPARE or next_.key is None:
            return (await self._succession.prepare()).key_id
        key_id = next_.key.key_id
        if next_.step is JwtKeyStep.ACTIVATE:
            await self._succession.activate(key_id, at_revision=revision)
        elif next_.step is JwtKeyStep.RETIRE:
            await self._succession.retire(key_id, at_revision=revision)
        else:
            await self._succession.remove(key_id, at_revision=revision)
        return key_id

    def _failed(self, next_: JwtKeys, error: MeshmintError) -> None:
        longest = _LONGEST_URGENT_REST if next_.is_urgent else _LONGEST_REST
        self._rest = min(max(2 * self._rest, _FIRST_REST), longest)
        self._rests_until = self._monotonic() + self._rest
        telemetry.JWT_KEY_FAILURES.labels(next_.step.value).inc()
        write = log.error if next_.is_urgent else log.warning
        write(
            "a step with a key for JWT-SVIDs failed, and will be tried again",
            step=next_.step.value,
            reason=error.reason,
            problem=error.message,
            seconds=self._rest,
        )
