"""What one of all workers and replicas does for the others: CRLs, rotation, tidying.

Every worker asks for the leadership and the one that has it works; when it dies,
another takes over within seconds. A duty may find that its leadership was lost
while it ran: what must not happen twice is guarded in the store.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from meshmint_server import telemetry
from meshmint_server.errors import MeshmintError
from meshmint_server.store import Leadership

__all__ = ["Duty", "Upkeep"]

log = structlog.get_logger(__name__)

_CLAIM_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Duty:
    """Something to do again and again.

    Attributes:
        name: For the log.
        run: Does what is due, which may be nothing. What it raises as MeshmintError is
            logged, and it is run again.
        interval: Seconds between two runs.
    """

    name: str
    run: Callable[[], Awaitable[None]]
    interval: float


class Upkeep:
    """Runs the duties whenever this worker is the leader, each at its own pace."""

    def __init__(self, leadership: Leadership, duties: Sequence[Duty]) -> None:
        self._leadership = leadership
        self._duties = duties
        self._leads = asyncio.Event()

    async def run(self) -> None:
        """Runs until it is cancelled, and then gives the leadership back."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for duty in self._duties:
                    tasks.create_task(self._perform(duty), name=f"duty-{duty.name}")
                await self._claim()
        finally:
            telemetry.LEADER.set(0)
            await self._leadership.release()

    async def _claim(self) -> None:
        while True:
            leads = await self._leadership.hold()
            if leads and not self._leads.is_set():
                log.info("this worker has taken over the upkeep", pid=os.getpid())
                self._leads.set()
            elif not leads and self._leads.is_set():
                log.warning("this worker has lost the upkeep", pid=os.getpid())
                self._leads.clear()
            telemetry.LEADER.set(int(leads))
            await asyncio.sleep(_CLAIM_SECONDS)

    async def _perform(self, duty: Duty) -> None:
        while True:
            await self._leads.wait()
            try:
                await duty.run()
            except MeshmintError as error:
                log.warning(
                    "a duty was not done, and will be tried again",
                    duty=duty.name,
                    reason=error.reason,
                    problem=error.message,
                )
            await asyncio.sleep(duty.interval)
