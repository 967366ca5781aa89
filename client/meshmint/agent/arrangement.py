"""What works at this moment: a unit for each certificate, template and socket.

A changed configuration rearranges it: what is unchanged goes on undisturbed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from meshmint.agent.condition import Condition
from meshmint.agent.config import AgentConfig, CertificateSettings, TemplateSettings
from meshmint.agent.delivery import Delivery
from meshmint.agent.jwt_source import ServiceJwtSource
from meshmint.agent.log import Log
from meshmint.agent.parts import Parts
from meshmint.agent.reactions import Reactor
from meshmint.agent.renewer import Renewer
from meshmint.agent.sockets import SocketError, SocketSettings, serve_socket
from meshmint.agent.targets import CertificateTargets, Targets, TemplateTargets
from meshmint.agent.tasks import begin, end

__all__ = ["Arrangement", "Unit"]

_Settings = CertificateSettings | TemplateSettings | SocketSettings

_LONGEST_PAUSE = 30.0
# A disk that hangs may keep an output for longer; nobody waits for it.
_CLOSE_SECONDS = 10.0


@dataclass(slots=True)
class Unit:
    """One certificate, template or socket at work.

    Attributes:
        settings: What it was made with.
        delivery: Writes its outputs; None for a socket.
        renewer: Keeps its certificate; None for what has none of its own.
        targets: What it writes to.
        tasks: What is going on.
    """

    settings: _Settings
    delivery: Delivery | None = None
    renewer: Renewer | None = None
    targets: Targets | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def stop(self) -> None:
        """Ends it; what is being written is written."""
        await end(self.tasks)
        await self.close()

    async def close(self) -> None:
        """Lets go of its outputs."""
        if self.targets is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await asyncio.to_thread(self.targets.close)


class Arrangement:
    """Everything that is at work.

    Args:
        parts: What the agent's tasks share.
        reactor: Sees to reactions.
    """

    def __init__(self, parts: Parts, reactor: Reactor) -> None:
        self._parts = parts
        self._reactor = reactor
        self._units: dict[Hashable, Unit] = {}
        self._roles: dict[str, str] = {}
        self._jwt = ServiceJwtSource(parts.connection, lambda name: self._roles.get(name, ""))

    def prepare(self, config: AgentConfig) -> None:
        """Says what there will be: conditions, names and their order."""
        names = tuple(settings.name for settings in config.certificates)
        conditions = self._parts.conditions
        conditions.arrange(names, tuple(template.label for template in config.templates))
        self._roles = {settings.name: settings.role for settings in config.certificates}
        self._parts.holdings.arrange(names, self._parts.clock.now())

    async def arrange(self, config: AgentConfig) -> None:
        """Ends what is gone or changed, and begins what is new."""
        wanted = dict(_wanted(config))
        leaving = [key for key, unit in self._units.items() if wanted.get(key) != unit.settings]
        await asyncio.gather(*(self._units.pop(key).stop() for key in leaving))
        self.prepare(config)
        served = self._parts.conditions.sockets
        self._parts.conditions.sockets = {
            path: served[path] if ("socket", path) in self._units else "it is not served yet"
            for path in (socket.path for socket in config.sockets)
        }
        names = tuple(settings.name for settings in config.certificates)
        for key, settings in wanted.items():
            if key not in self._units:
                self._units[key] = self._begin(settings, names)
        for unit in self._units.values():
            if unit.renewer is not None:
                unit.renewer.wake()

    def units(self, config: AgentConfig) -> list[Unit]:
        """A unit for each certificate and template, none of them at work."""
        names = tuple(settings.name for settings in config.certificates)
        return [
            *(self._certificate(settings) for settings in config.certificates),
            *(self._template(settings, names) for settings in config.templates),
        ]

    async def stop(self) -> None:
        """Ends everything."""
        units, self._units = list(self._units.values()), {}
        await asyncio.gather(*(unit.stop() for unit in units))

    def _begin(self, settings: _Settings, names: tuple[str, ...]) -> Unit:
        if isinstance(settings, SocketSettings):
            unit = Unit(settings)
            unit.tasks.append(begin(f"socket {settings.path}", lambda: self._serve(settings)))
            return unit
        if isinstance(settings, CertificateSettings):
            unit = self._certificate(settings)
        else:
            unit = self._template(settings, names)
        for part in (unit.renewer, unit.delivery):
            if part is not None:
                unit.tasks.append(begin(str(_key(settings)), part.run))
        return unit

    def _certificate(self, settings: CertificateSettings) -> Unit:
        targets = CertificateTargets(settings, self._reactor)
        condition = self._parts.conditions.by_name[settings.name]
        condition.delivered = False
        log = Log(certificate=settings.name)
        return Unit(
            settings,
            Delivery(condition, targets, self._parts, log),
            Renewer(settings, self._parts),
            targets,
        )

    def _template(self, settings: TemplateSettings, names: tuple[str, ...]) -> Unit:
        targets = TemplateTargets(settings, names, self._reactor)
        condition: Condition = self._parts.conditions.templates[settings.label]
        condition.delivered = False
        log = Log(template=str(settings.destination))
        return Unit(settings, Delivery(condition, targets, self._parts, log), None, targets)

    async def _serve(self, settings: SocketSettings) -> None:
        """Serves a socket, for ever; what cannot be served is tried again."""
        conditions, log = self._parts.conditions, Log(socket=settings.path)
        failures = 0
        while True:
            try:
                async with serve_socket(settings, self._parts.holdings.identities, self._jwt):
                    failures = 0
                    conditions.sockets[settings.path] = ""
                    conditions.changed()
                    await asyncio.Event().wait()
            except SocketError as error:
                failures += 1
                if conditions.sockets.get(settings.path) != str(error):
                    log.error("the socket is not served; it is tried again", error=str(error))
                conditions.sockets[settings.path] = str(error)
                conditions.changed()
                limit = min(_LONGEST_PAUSE, 2.0 ** min(failures, 16))
                await asyncio.sleep(self._parts.draw(0.0, limit))


def _key(settings: _Settings) -> tuple[str, str]:
    if isinstance(settings, CertificateSettings):
        return "certificate", settings.name
    if isinstance(settings, TemplateSettings):
        return "template", str(settings.destination)
    return "socket", settings.path


def _wanted(config: AgentConfig) -> Iterable[tuple[Hashable, _Settings]]:
    every: tuple[_Settings, ...] = (*config.certificates, *config.templates, *config.sockets)
    return ((_key(settings), settings) for settings in every)
