"""The composition root of the agent: settings in, running tasks out, and their end in order.

Nothing else builds parts from the configuration. A task that ends by a fault of its
own is told of and begun again; none takes another along.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from meshmint.agent.bundles import BundleWatch
from meshmint.agent.clock import Clock
from meshmint.agent.config import AgentConfig, CertificateSettings
from meshmint.agent.connection import Connection
from meshmint.agent.delivery import Delivery
from meshmint.agent.identities import Picture
from meshmint.agent.log import Log, set_up_log
from meshmint.agent.metrics import Metrics
from meshmint.agent.parts import Parts
from meshmint.agent.publicity import Publicity
from meshmint.agent.renewer import Renewer
from meshmint.agent.state import StateDirectory
from meshmint.agent.systemd import Notifier
from meshmint.agent.targets import Targets
from meshmint.errors import ConfigurationError, MeshmintError

__all__ = ["Agent", "OnceFailed"]

_AFTER_A_BUG = 5.0
# A disk that hangs keeps a thread for as long as it does; others must find one.
_THREADS_BESIDE = 16


class OnceFailed(Exception):
    """Something of `--once` failed, and the log has said what.

    Attributes:
        error: The first error of the service, if there was one.
    """

    def __init__(self, error: MeshmintError | None) -> None:
        super().__init__("not everything was done")
        self.error = error


@dataclass(slots=True)
class _Unit:
    """One certificate at work."""

    settings: CertificateSettings
    renewer: Renewer
    delivery: Delivery
    targets: Targets
    tasks: tuple[asyncio.Task[None], ...] = ()

    async def stop(self) -> None:
        await _end(self.tasks)
        self.targets.close()


class Agent:
    """One agent.

    Args:
        config: Its configuration.
        path: Where that is read again from.
        clock: Tells the time.
    """

    def __init__(self, config: AgentConfig, path: Path, clock: Clock | None = None) -> None:
        self._config = config
        self._path = path
        self._parts = parts = Parts(
            Connection(config.server, config.auth),
            StateDirectory(config.state_dir),
            clock or Clock(),
        )
        self._log = Log()
        self._notifier = Notifier()
        self._metrics = Metrics(parts.conditions, parts.holdings, parts.clock)
        self._bundles = BundleWatch(parts)
        self._publicity = Publicity(
            parts, self._notifier, self._metrics, lambda: self._config.server.address
        )
        self._units: dict[str, _Unit] = {}
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Lock()

    # --- for ever ----------------------------------------------------------------------

    async def run(self) -> None:
        """Works until SIGTERM or SIGINT; SIGHUP has it read its configuration again.

        Raises:
            ConfigurationError: It cannot begin: another agent works here, or the health
                address is taken.
        """
        loop = asyncio.get_running_loop()
        reloads: set[asyncio.Task[None]] = set()

        def reload() -> None:
            task = loop.create_task(self._reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        with self._parts.state.locked():
            self._make_threads()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stopping.set)
            loop.add_signal_handler(signal.SIGHUP, reload)
            try:
                async with self._publicity.serve(self._config.health):
                    await self._work()
            finally:
                await _end(tuple(reloads))
                await self._parts.connection.close()
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    loop.remove_signal_handler(number)

    async def _work(self) -> None:
        config = self._config
        self._log.info(
            "agent starts",
            server=config.server.address,
            state_dir=config.state_dir,
            certificates=len(config.certificates),
            health=str(config.health or ""),
        )
        await self._bundles.restore()
        background = [
            self._begin("clock", lambda: self._parts.clock.watch(self._clock_was_set)),
            self._begin("trust bundle", self._bundles.run),
            self._begin("status", self._publicity.run),
        ]
        try:
            async with self._reloading:
                await self._arrange(config)
            await self._stopping.wait()
            self._log.info("agent stops")
            self._notifier.stopping()
        finally:
            await asyncio.gather(*(unit.stop() for unit in self._units.values()))
            await _end(background)
            await self._publicity.say_goodbye()

    def _clock_was_set(self, step: timedelta) -> None:
        self._metrics.clock_steps.inc()
        seconds = round(step.total_seconds(), 1)
        self._log.warning("the clock was set; every renewal is planned anew", seconds=seconds)
        self._parts.holdings.publish(self._parts.clock.now())

    async def _arrange(self, config: AgentConfig) -> None:
        """Lets what is unchanged go on, ends what is gone or changed, and begins what is new."""
        wanted = {settings.name: settings for settings in config.certificates}
        leaving = [u for name, u in self._units.items() if wanted.get(name) != u.settings]
        await asyncio.gather(*(unit.stop() for unit in leaving))
        for unit in leaving:
            del self._units[unit.settings.name]
        self._parts.conditions.arrange(tuple(wanted))
        self._parts.holdings.arrange(tuple(wanted), self._parts.clock.now())
        for name, settings in wanted.items():
            if name not in self._units:
                self._units[name] = self._begin_unit(settings)
        for unit in self._units.values():
            unit.renewer.wake()

    def _unit(self, settings: CertificateSettings) -> _Unit:
        targets = Targets(settings)
        return _Unit(
            settings,
            Renewer(settings, self._parts),
            Delivery(settings.name, targets, self._parts),
            targets,
        )

    def _begin_unit(self, settings: CertificateSettings) -> _Unit:
        unit = self._unit(settings)
        unit.tasks = (
            self._begin(settings.name, unit.renewer.run),
            self._begin(settings.name, unit.delivery.run),
        )
        return unit

    def _begin(self, what: str, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return asyncio.create_task(self._again_and_again(what, work))

    async def _again_and_again(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception:  # noqa: BLE001 - the outermost edge: a bug in one part ends no other
                self._log.bug("a bug in the agent; this part of it begins again", part=what)
            await asyncio.sleep(_AFTER_A_BUG)

    async def _reload(self) -> None:
        async with self._reloading:
            self._notifier.reloading()
            try:
                config = await asyncio.to_thread(AgentConfig.load, self._path)
                self._refuse_what_needs_a_restart(config)
            except ConfigurationError as error:
                self._log.error("the configuration is left as it was", error=error.message)
            else:
                set_up_log(config.log)
                await self._parts.connection.configure(config.server, config.auth)
                await self._arrange(config)
                self._config = config
                self._log.info("configuration read again", certificates=len(config.certificates))
            self._publicity.reloaded()

    def _refuse_what_needs_a_restart(self, config: AgentConfig) -> None:
        changed = [
            name
            for name in ("state_dir", "health")
            if getattr(config, name) != getattr(self._config, name)
        ]
        if changed:
            raise ConfigurationError(
                f"{self._path}: {' and '.join(changed)} cannot change while the agent runs: "
                "restart it, or put the old value back"
            )

    # --- once --------------------------------------------------------------------------

    async def once(self) -> None:
        """Gets every certificate that is missing or due, writes everything, and ends.

        Raises:
            ConfigurationError: It cannot begin.
            OnceFailed: Something failed; the rest was done.
        """
        with self._parts.state.locked():
            self._make_threads()
            try:
                await self._once()
            finally:
                await self._parts.connection.close()

    async def _once(self) -> None:
        config = self._config
        names = tuple(settings.name for settings in config.certificates)
        self._parts.conditions.arrange(names)
        await self._bundles.restore()
        self._parts.holdings.arrange(names, self._parts.clock.now())
        units = [self._unit(settings) for settings in config.certificates]
        try:
            errors = await asyncio.gather(
                self._bundles.once(), *(unit.renewer.once() for unit in units)
            )
            picture = self._parts.holdings.identities.picture or Picture()
            delivered = await asyncio.gather(*(unit.delivery.deliver(picture) for unit in units))
        finally:
            for unit in units:
                unit.targets.close()
        await self._publicity.say_goodbye()
        failed = [error for error in errors if error is not None]
        if failed or not all(delivered):
            raise OnceFailed(failed[0] if failed else None)

    def _make_threads(self) -> None:
        most = 2 * len(self._config.certificates) + _THREADS_BESIDE
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(min(most, 512)))


async def _end(tasks: tuple[asyncio.Task[None], ...] | list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
