"""The composition root of the agent: settings in, running tasks out, and their end in order.

Nothing else builds parts from the configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from meshmint.agent.arrangement import Arrangement
from meshmint.agent.bundles import BundleWatch
from meshmint.agent.clock import Clock
from meshmint.agent.config import AgentConfig
from meshmint.agent.connection import Connection
from meshmint.agent.identities import Picture
from meshmint.agent.log import Log, set_up_log
from meshmint.agent.metrics import Metrics
from meshmint.agent.parts import Parts
from meshmint.agent.publicity import Publicity
from meshmint.agent.reactions import Ledger, ReactionFailure, Reactor
from meshmint.agent.state import StateDirectory
from meshmint.agent.systemd import Notifier
from meshmint.agent.tasks import begin, end
from meshmint.errors import ConfigurationError, MeshmintError

__all__ = ["Agent", "OnceFailed"]

# A disk that hangs keeps a thread for as long as it does; others must find one.
_THREADS_BESIDE = 16
_MOST_THREADS = 512


class OnceFailed(Exception):
    """Something of `--once` failed, and the log has said what.

    Attributes:
        error: The first error of the service, if there was one.
    """

    def __init__(self, error: MeshmintError | None) -> None:
        super().__init__("not everything was done")
        self.error = error


class Agent:
    """One agent.

    Args:
        config: Its configuration.
        path: Where that is read again from.
        clock: Tells the time.
        stops: Called when the agent begins to stop, which may take long where a disk hangs.
    """

    def __init__(
        self,
        config: AgentConfig,
        path: Path,
        clock: Clock | None = None,
        stops: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._stops = stops
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
        self._reactor = Reactor(Ledger(parts.state.reactions), self._reaction_failed)
        parts.conditions.reaction_errors = self._reaction_errors
        self._arrangement = Arrangement(parts, self._reactor)
        self._publicity = Publicity(
            parts, self._notifier, self._metrics, lambda: self._config.server.address
        )
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._reloads: set[asyncio.Task[None]] = set()

    # --- for ever ----------------------------------------------------------------------

    async def run(self) -> None:
        """Works until SIGTERM or SIGINT; SIGHUP has it read its configuration again.

        Raises:
            ConfigurationError: It cannot begin: another agent works here, or the health
                address is taken.
        """
        async with self._at_work(), self._publicity.serve(self._config.health):
            with self._signals():
                await self._run()

    @contextlib.asynccontextmanager
    async def _at_work(self) -> AsyncIterator[None]:
        """The state directory is held, and every call ends with it."""
        with self._parts.state.locked():
            most = 2 * (len(self._config.certificates) + len(self._config.templates))
            threads = ThreadPoolExecutor(min(most + _THREADS_BESIDE, _MOST_THREADS))
            asyncio.get_running_loop().set_default_executor(threads)
            try:
                async with self._reactor:
                    yield
            finally:
                await self._parts.connection.close()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()

        def reload() -> None:
            if not self._stopping.is_set():
                task = loop.create_task(self._reload())
                self._reloads.add(task)
                task.add_done_callback(self._reloads.discard)

        handlers = {
            signal.SIGTERM: self._stopping.set,
            signal.SIGINT: self._stopping.set,
            signal.SIGHUP: reload,
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    async def _run(self) -> None:
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
            begin("clock", lambda: self._parts.clock.watch(self._clock_was_set)),
            begin("trust bundle", self._bundles.run),
            begin("status", self._publicity.run),
        ]
        try:
            async with self._reloading:
                await self._arrangement.arrange(config)
            await self._stopping.wait()
            self._log.info("agent stops")
            self._stops()
            self._notifier.stopping()
        finally:
            # One that is under way would begin again what is ended here.
            await end(self._reloads)
            await self._arrangement.stop()
            await end(background)
            await self._publicity.say_goodbye()

    def _clock_was_set(self, step: timedelta) -> None:
        self._metrics.clock_steps.inc()
        seconds = round(step.total_seconds(), 1)
        self._log.warning("the clock was set; every renewal is planned anew", seconds=seconds)
        self._parts.holdings.publish(self._parts.clock.now())

    def _reaction_failed(self, failure: ReactionFailure) -> None:
        self._log.error("a reaction has failed; it is tried again", error=str(failure))
        self._parts.conditions.changed()

    def _reaction_errors(self) -> Mapping[str, str]:
        return {
            name: failure.for_everybody
            for failure in self._reactor.failures
            for name in failure.names
        }

    async def _reload(self) -> None:
        async with self._reloading:
            self._publicity.reloading()
            try:
                config = await asyncio.to_thread(AgentConfig.load, self._path)
                self._refuse_what_needs_a_restart(config)
            except ConfigurationError as error:
                self._log.error("the configuration is left as it was", error=error.message)
            else:
                set_up_log(config.log)
                await self._parts.connection.configure(config.server, config.auth)
                await self._arrangement.arrange(config)
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
        async with self._at_work():
            self._arrangement.prepare(self._config)
            await self._bundles.restore()
            units = self._arrangement.units(self._config)
            try:
                errors = await asyncio.gather(
                    self._bundles.once(), *(u.renewer.once() for u in units if u.renewer)
                )
                picture = self._parts.holdings.identities.picture or Picture()
                delivered = await asyncio.gather(
                    *(u.delivery.deliver(picture) for u in units if u.delivery)
                )
                unanswered = await self._reactor.settle()
            finally:
                for unit in units:
                    await unit.close()
            await self._publicity.say_goodbye()
        failed = [error for error in errors if error is not None]
        if failed or not all(delivered) or unanswered:
            raise OnceFailed(failed[0] if failed else None)
