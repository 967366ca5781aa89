"""Tells how the agent fares: health and status over HTTP, systemd, and a file for the command.

It only reads; nothing that it tells is secret.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

from meshmint.agent.fields import LoopbackAddress
from meshmint.agent.listener import Page, serve_pages
from meshmint.agent.log import Log
from meshmint.agent.metrics import Metrics
from meshmint.agent.parts import Parts
from meshmint.agent.status import AgentStatus
from meshmint.agent.systemd import Notifier
from meshmint.spans import span

__all__ = ["Publicity"]

# Many certificates change at once, and one look is enough for all.
_GATHER_SECONDS = 0.1
_LOOK_SECONDS = 15.0


class Publicity:
    """Everything that tells.

    Args:
        parts: What the agent's tasks share.
        notifier: systemd.
        metrics: The metrics.
        server: Gives the service's address.
    """

    def __init__(
        self, parts: Parts, notifier: Notifier, metrics: Metrics, server: Callable[[], str]
    ) -> None:
        self._conditions = parts.conditions
        self._holdings = parts.holdings
        self._state = parts.state
        self._clock = parts.clock
        self._notifier = notifier
        self._metrics = metrics
        self._server = server
        self._changed = asyncio.Event()
        parts.conditions.changed = self._changed.set
        self._was_ready = False
        self._saved = ""
        self._log = Log()

    @contextlib.asynccontextmanager
    async def serve(self, address: LoopbackAddress | None) -> AsyncIterator[None]:
        """Serves the pages, if there is an address.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        if address is None:
            yield
            return
        pages = {
            "/live": self._live,
            "/ready": self._ready,
            "/status": self._status_page,
            "/metrics": lambda: Page(self._metrics.page(), CONTENT_TYPE_LATEST),
        }
        async with serve_pages(address, pages):
            yield

    def _live(self) -> Page:
        # That the event loop answers is what it says.
        return Page(b"live\n")

    def _ready(self) -> Page:
        missing = self._conditions.why_not_ready(self._clock.now())
        if not missing:
            return Page(b"ready\n")
        return Page(
            json.dumps({"not_ready": dict(missing)}).encode() + b"\n",
            "application/json",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )

    def _status_page(self) -> Page:
        return Page(self._status().model_dump_json().encode() + b"\n", "application/json")

    def _status(self, *, is_running: bool = True) -> AgentStatus:
        return AgentStatus.of(
            self._conditions,
            self._holdings,
            server=self._server(),
            now=self._clock.now(),
            is_running=is_running,
        )

    async def run(self) -> None:
        """Tells systemd and the file of every change, for ever."""
        await asyncio.gather(self._tell_changes(), self._tell_life())

    async def _tell_changes(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._changed.wait()
            self._changed.clear()
            self._tell_systemd()
            await self._save(is_running=True)
            await asyncio.sleep(_GATHER_SECONDS)

    async def _tell_life(self) -> None:
        pause = self._notifier.watchdog_pause
        while pause is not None:
            self._notifier.alive()
            await asyncio.sleep(pause)

    def _tell_systemd(self) -> None:
        now = self._clock.now()
        conditions = self._conditions.by_name.values()
        missing = self._conditions.why_not_ready(now)
        if not missing and not self._was_ready and conditions:
            self._was_ready = True
            self._notifier.ready()
            self._log.info("every certificate is there and delivered", certificates=len(conditions))
        if missing:
            name, why = next(iter(missing.items()))
            text = f"{len(missing)} of {len(conditions)} not ready: {name}: {why}"
        else:
            ends = [(one.end, one.name) for one in conditions if one.end is not None]
            text = f"{len(conditions)} certificates are good"
            if ends:
                end, name = min(ends)
                text += f"; the first to end is {name}, in {span(end - now)}"
        self._notifier.status(text)

    def reloading(self) -> None:
        """Says that a reload begins; before the agent is ready systemd must not hear of it."""
        if self._was_ready:
            self._notifier.reloading()

    def reloaded(self) -> None:
        """Says that a reload is over."""
        if self._was_ready:
            self._notifier.ready()
        self._changed.set()

    async def say_goodbye(self) -> None:
        """Leaves the last status behind."""
        await self._save(is_running=False)

    async def _save(self, *, is_running: bool) -> None:
        status = self._status(is_running=is_running)
        said = status.model_dump_json(exclude={"as_of"})
        if said == self._saved:
            return
        try:
            text = status.model_dump_json(ensure_ascii=True)
            await asyncio.to_thread(self._state.save_status, text)
            self._saved = said
        except OSError as error:
            self._log.debug("the status cannot be kept", reason=error.strerror or str(error))
