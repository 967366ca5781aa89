"""Keeps one certificate: kept from before if it still fits, asked for, renewed in time.

A failure is told, louder and louder, and tried again; it never ends the loop, and
never reaches another certificate. The old certificate stays to its last second.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from meshmint.agent.config import CertificateSettings
from meshmint.agent.kept import KeptCertificate, Unusable
from meshmint.agent.log import Log
from meshmint.agent.parts import Parts
from meshmint.agent.plan import Loudness, loudness, pause, renewal_time
from meshmint.agent.wish import Wish
from meshmint.errors import AnswerRefused, InvalidArgument, MeshmintError
from meshmint.spans import span

__all__ = ["Renewer"]

_LEVELS = {
    Loudness.NOTICE: logging.WARNING,
    Loudness.WARNING: logging.ERROR,
    Loudness.URGENT: logging.CRITICAL,
    Loudness.EXPIRED: logging.CRITICAL,
}


class Renewer:
    """One certificate's loop.

    Args:
        settings: The certificate's.
        parts: What the agent's tasks share.
    """

    def __init__(self, settings: CertificateSettings, parts: Parts) -> None:
        self._settings = settings
        self._wanted = settings.wanted()
        self._connection = parts.connection
        self._holdings = parts.holdings
        self._state = parts.state
        self._clock = parts.clock
        self._conditions = parts.conditions
        self._condition = parts.conditions.by_name[settings.name]
        self._draw = parts.draw
        self._log = Log(certificate=settings.name)
        self._chance = self._draw(0.0, 1.0)
        self._woken = asyncio.Event()
        self._wish: Wish | None = None
        # What is held and not on disk yet, because the disk would not take it.
        self._unsaved: KeptCertificate | None = None

    def wake(self) -> None:
        """Has it try at once what it would try later, as after a change of settings."""
        self._woken.set()

    async def run(self) -> None:
        """Keeps the certificate, for ever."""
        await self.restore()
        failures = 0
        retry_at: datetime | None = None
        while True:
            now = self._clock.now()
            due = self._due(now)
            if due <= now and (retry_at is None or retry_at <= now or self._woken.is_set()):
                self._woken.clear()
                error = await self.renew()
                failures = 0 if error is None else failures + 1
                retry_at = None if error is None else self._retry_at(failures, error)
                continue
            self._woken.clear()
            await self._sleep(due if due > now or retry_at is None else retry_at, now)
            if retry_at is not None and retry_at - self._clock.now() > timedelta(minutes=10):
                # Planned by a clock that was set back since.
                retry_at = None

    async def once(self) -> MeshmintError | None:
        """Gets the certificate, unless the one that is kept is good and not due; tells why not."""
        await self.restore()
        return await self.renew() if self._due(self._clock.now()) <= self._clock.now() else None

    async def restore(self) -> None:
        """Takes the certificate that is kept, if it still fits; asks nobody."""
        name = self._settings.name
        kept = self._holdings.certificate(name)
        if kept is None:
            try:
                kept = await asyncio.to_thread(self._state.load, name)
            except Unusable as error:
                self._log.warning(
                    "the kept certificate cannot be used; a new one is asked for", reason=str(error)
                )
                return
        if kept is None:
            return
        now = self._clock.now()
        if kept.is_expired(now):
            self._log.warning("the kept certificate has expired", expired_at=kept.not_after)
            self._holdings.hold(name, None, now)
        elif kept.wanted != self._wanted:
            # What is held is served on, should the other one be long in coming; what is on the
            # disk stays there.
            self._log.info("the configuration asks for another certificate than the one kept")
        else:
            self._log.info(
                "kept certificate is still good",
                serial=kept.serial_number,
                left=span(kept.not_after - now),
            )
            self._hold(kept, now)

    async def renew(self) -> MeshmintError | None:
        """Tries once to get a certificate; returns why there is none."""
        settings = self._settings
        try:
            client = await self._connection.client()
            now = self._clock.now()
            if self._wish is None or self._wish.is_stale(now):
                self._wish = await Wish.make(settings, now)
            issued = await self._wish.ask(client)
            # Parsing may refuse, too.
            kept = KeptCertificate.issued(issued, settings, self._clock.now())
        except MeshmintError as error:
            if isinstance(error, AnswerRefused | InvalidArgument):
                # Asked alike again, it would be answered alike.
                self._wish = None
            self._failed(error)
            return error
        self._wish = None
        for warning in issued.warnings:
            self._log.warning("the service has changed what was asked for", warning=warning)
        self._chance = self._draw(0.0, 1.0)
        self._unsaved = kept
        await self._save()
        now = self._clock.now()
        self._condition.renewals += 1
        self._condition.failures = 0
        self._condition.last_error = ""
        self._hold(kept, now)
        self._log.info(
            "certificate obtained",
            serial=kept.serial_number,
            spiffe_id=kept.spiffe_id or "",
            role=issued.role,
            not_after=kept.not_after,
            left=span(kept.not_after - now),
        )
        return None

    def _hold(self, kept: KeptCertificate, now: datetime) -> None:
        condition = self._condition
        validity = kept.validity(now)
        condition.delivered &= condition.serial_number == kept.serial_number
        condition.spiffe_id = kept.spiffe_id
        condition.serial_number = kept.serial_number
        condition.start, condition.end = validity.start, validity.end
        self._holdings.hold(self._settings.name, kept, now)
        self._due(now)

    async def _save(self) -> None:
        """Keeps what is held; what the disk does not take now, it is asked to take again later."""
        if self._unsaved is None:
            return
        try:
            await asyncio.to_thread(self._state.save, self._settings.name, self._unsaved)
        except OSError as error:
            self._log.error(
                "the certificate cannot be kept over a restart: mend state_dir",
                reason=error.strerror or str(error),
                path=self._state.path,
            )
        else:
            self._unsaved = None

    def _due(self, now: datetime) -> datetime:
        """When the certificate must be asked for; the plan is made anew with every look."""
        kept = self._holdings.certificate(self._settings.name)
        if kept is None or kept.is_expired(now) or kept.wanted != self._wanted:
            due = now
        else:
            due = renewal_time(kept.validity(now), self._settings.renewal, self._chance)
        if self._condition.renewal != due and due > now:
            self._condition.renewal = due
            self._conditions.changed()
        return due

    async def _sleep(self, until: datetime, now: datetime) -> None:
        """Until then, or until the held certificate ends, which must be published."""
        kept = self._holdings.certificate(self._settings.name)
        if kept is not None and not kept.is_expired(now):
            await self._clock.wait_until(min(until, kept.not_after), self._woken)
            await self._save()
            after = self._clock.now()
            if kept.is_expired(after):
                self._holdings.publish(after)
                self._conditions.changed()
        else:
            await self._clock.wait_until(until, self._woken)

    def _retry_at(self, failures: int, error: MeshmintError) -> datetime:
        now = self._clock.now()
        kept = self._holdings.certificate(self._settings.name)
        validity = kept.validity(now) if kept else None
        moment = now + pause(failures, validity, now, self._draw, asked_for=error.retry_after)
        self._condition.renewal = moment
        self._conditions.changed()
        return moment

    def _failed(self, error: MeshmintError) -> None:
        condition = self._condition
        condition.failures += 1
        condition.last_error = f"{error.code}: {error}"
        now = self._clock.now()
        kept = self._holdings.certificate(self._settings.name)
        loud = loudness(kept.validity(now) if kept else None, now)
        if kept is None:
            event = "there is no certificate, and none can be had"
        elif loud is Loudness.EXPIRED:
            event = (
                f"the certificate EXPIRED {span(now - kept.not_after)} ago, and no other can be had"
            )
        elif loud is Loudness.URGENT:
            event = f"the certificate is about to expire, in {span(kept.not_after - now)}"
        elif loud is Loudness.WARNING:
            event = f"the certificate runs out in {span(kept.not_after - now)}, and is not renewed"
        else:
            event = f"not renewed yet; the certificate is good for {span(kept.not_after - now)}"
        self._log.write(
            _LEVELS[loud],
            event,
            failures=condition.failures,
            code=error.code,
            reason=error.reason,
            error=str(error),
        )
        self._conditions.changed()
