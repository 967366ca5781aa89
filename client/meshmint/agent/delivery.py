"""Delivers one certificate, or one template: writes what differs, and has reactions follow.

Outputs are derived from what the agent holds; those that somebody changed are repaired.
What fails is told and tried again, and never keeps another certificate waiting.
"""

from __future__ import annotations

import asyncio
import contextlib

from meshmint.agent.condition import Condition
from meshmint.agent.identities import Picture
from meshmint.agent.log import Log
from meshmint.agent.parts import Parts
from meshmint.agent.targets import Targets, Written

__all__ = ["Delivery"]

# Somebody else may have changed what is on the disk.
_REPAIR_SECONDS = 60.0
_LONGEST_PAUSE = 60.0


class Delivery:
    """One certificate's, or template's.

    Args:
        condition: Where it is told how things are.
        targets: Its outputs and reactions.
        parts: What the agent's tasks share.
        log: Carries what it is about.
    """

    def __init__(self, condition: Condition, targets: Targets, parts: Parts, log: Log) -> None:
        self._condition = condition
        self._targets = targets
        self._identities = parts.holdings.identities
        self._conditions = parts.conditions
        self._draw = parts.draw
        self._log = log

    async def run(self) -> None:
        """Delivers every change, for ever."""
        failures, delivered = 0, None
        with self._identities.watch(self._targets.part) as changed:
            while True:
                wait = _REPAIR_SECONDS
                if failures:
                    wait = self._draw(0.0, min(_LONGEST_PAUSE, 2.0 ** min(failures, 16)))
                is_look = True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await changed.wait()
                        is_look = False
                changed.clear()
                picture = self._identities.picture
                if picture is None:
                    continue
                part = self._targets.part(picture)
                # What came together may have been seen already.
                if is_look or failures or part != delivered:
                    failures = 0 if await self.deliver(picture) else failures + 1
                    delivered = part

    async def deliver(self, picture: Picture) -> bool:
        """Delivers once; False if something failed. That there is nothing yet is no failure."""
        written = await asyncio.to_thread(self._targets.write, picture)
        if written is None:
            # Expired or not there yet: what is in the outputs stays.
            return True
        if written.changed:
            self._log.info("outputs changed", serial=written.serial_number)
        self._targets.react(written)
        self._tell(written)
        return not written.failures

    def _tell(self, written: Written) -> None:
        condition, why = self._condition, "; ".join(written.failures)
        for failure in written.failures:
            if failure not in condition.delivery_error:
                self._log.error("not delivered; it is tried again", error=failure)
        if not why and condition.delivery_error:
            self._log.info("delivered again")
        is_delivered = not why and condition.serial_number == written.serial_number
        if (is_delivered, why) != (condition.delivered, condition.delivery_error):
            condition.delivered = is_delivered
            condition.delivery_error = why
            self._conditions.changed()
