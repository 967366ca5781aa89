"""Hands one certificate to programs: writes its outputs, and has reactions follow a change.

Outputs are derived from what the agent holds; those that differ are repaired. What
fails is told and tried again, and never keeps another certificate waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Protocol

from meshmint.agent.identities import Bundle, Identity, Picture
from meshmint.agent.log import Log
from meshmint.agent.parts import Parts

__all__ = ["Delivers", "Delivery", "DeliveryFailed"]

# Somebody else may have changed what is on the disk.
_REPAIR_AFTER = timedelta(minutes=1)
_LONGEST_PAUSE = 60.0


class DeliveryFailed(Exception):
    """Something could not be delivered; the text says what to do."""


class Delivers(Protocol):
    """The outputs and reactions of one certificate."""

    def write(self, identity: Identity, bundles: Mapping[str, Bundle]) -> bool:
        """Writes what differs, in a thread; True if anything did.

        Raises:
            DeliveryFailed: Something cannot be written.
        """
        ...

    async def react(self, identity: Identity) -> None:
        """Does what follows a change.

        Raises:
            DeliveryFailed: It failed after all tries.
        """
        ...


class Delivery:
    """One certificate's outputs and reactions.

    Args:
        name: The certificate's name.
        targets: Its outputs and reactions.
        parts: What the agent's tasks share.
    """

    def __init__(self, name: str, targets: Delivers, parts: Parts) -> None:
        self._name = name
        self._targets = targets
        self._identities = parts.holdings.identities
        self._state = parts.state
        self._conditions = parts.conditions
        self._condition = parts.conditions.by_name[name]
        self._draw = parts.draw
        self._log = Log(certificate=name)

    async def run(self) -> None:
        """Delivers every change, for ever."""
        latest: list[Picture] = []
        changed = asyncio.Event()

        async def follow() -> None:
            async for picture in self._identities.follow():
                latest[:] = [picture]
                changed.set()

        follower = asyncio.create_task(follow())
        failures = 0
        try:
            while True:
                wait = _REPAIR_AFTER.total_seconds()
                if failures:
                    wait = self._draw(0.0, min(_LONGEST_PAUSE, 2.0 ** min(failures, 16)))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await changed.wait()
                changed.clear()
                if latest:
                    failures = 0 if await self.deliver(latest[0]) else failures + 1
        finally:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)

    async def deliver(self, picture: Picture) -> bool:
        """Delivers once; False if something failed. Nothing to deliver is no failure."""
        identity = next((one for one in picture.identities if one.name == self._name), None)
        if identity is None:
            # Expired or not there yet: what is in the outputs stays, and its users see its end.
            return True
        try:
            # Before anything changes: who is killed in between makes up for the reactions.
            was_unfinished = await asyncio.to_thread(self._state.mark_unfinished, self._name)
            changed = await asyncio.to_thread(self._targets.write, identity, picture.bundles)
            if changed:
                self._log.info("outputs written", serial=f"{identity.certificate.serial_number:x}")
            if changed or was_unfinished:
                await self._targets.react(identity)
            await asyncio.to_thread(self._state.mark_finished, self._name)
        except DeliveryFailed as error:
            return self._failed(str(error))
        except OSError as error:
            return self._failed(f"state_dir: {error.strerror or error}")
        held = self._condition
        if held.serial_number == f"{identity.certificate.serial_number:x}":
            held.delivered = True
        held.delivery_error = ""
        self._conditions.changed()
        return True

    def _failed(self, why: str) -> bool:
        if why != self._condition.delivery_error:
            self._log.error("not delivered; it is tried again", error=why)
        self._condition.delivered = False
        self._condition.delivery_error = why
        self._conditions.changed()
        return False
