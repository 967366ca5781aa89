"""What is varied, one thing at a time, and how each value is measured.

A sweep brings its services up, all that it needs side by side, and then is asked for
one value at a time, in whatever order. Everywhere a CSR is signed and the certificate
is recorded before it is handed out; nothing is timed that was refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from peers.load import BadRun, Call, Measured, Pressure, measure
from peers.meshmint import Meshmint, Shape
from peers.workload import Work

from engine.services import put_roles, serving, serving_from_hsm, serving_with_records

__all__ = ["HSM", "PROXIED_HSM", "SWEEPS", "BesideSessions", "Plan", "Sweep"]

_SIGN: Final = Work("sign", is_recorded=True)
_WORKERS: Final = 2
# 64 in flight: more than keeps every worker busy.
_BUSY: Final = Pressure(16, 4)

Values = tuple[int, ...]
Ask = Callable[[int], Measured]


@dataclass(frozen=True, slots=True)
class Plan:
    """How each value is measured.

    Attributes:
        directory: Where services keep what they store, and h2load its files.
        seconds: Of one measurement, after it has settled.
    """

    directory: Path
    seconds: float

    def measure(self, server: Meshmint, call: Call, size: int, pressure: Pressure) -> Measured:
        """One measurement.

        Raises:
            BadRun: Something was refused, or was answered and is not on record.
        """
        before = server.count_records()
        seconds = self.seconds + pressure.settling
        measured = measure(call, size, pressure, seconds, self.directory)
        made = server.count_records() - before
        if made < measured.answers:
            raise BadRun(f"{measured.answers} certificates were handed out, and {made} recorded")
        return measured


@dataclass(frozen=True, slots=True)
class BesideSessions(Measured):
    """One run, and what the HSM gives without a service.

    Attributes:
        sessions_give: Signatures per second of as many sessions, right after the run.
    """

    sessions_give: float


@dataclass(frozen=True, slots=True)
class Sweep:
    """One thing that is varied.

    Attributes:
        name: As engine.json has it.
        values: What it is varied over.
        quick: The same for a smoke run.
        open: Brings the services up for some values.
    """

    name: str
    values: Values
    quick: Values
    open: Callable[[Plan, Values], AbstractContextManager[Ask]]


def _ask_busy(plan: Plan, servers: dict[int, Meshmint]) -> Ask:
    """Asks the service that has the value."""
    sizes = {value: server.probe(_SIGN) for value, server in servers.items()}

    def ask(value: int) -> Measured:
        server = servers[value]
        return plan.measure(server, server.call(_SIGN), sizes[value], _BUSY)

    return ask


@contextmanager
def _workers(plan: Plan, values: Values) -> Iterator[Ask]:
    with ExitStack() as stack:
        servers: dict[int, Meshmint] = {}
        for count in values:
            directory = plan.directory / f"workers-{count}"
            _, servers[count] = stack.enter_context(serving(directory, workers=count))
        yield _ask_busy(plan, servers)


@contextmanager
def _connections(plan: Plan, values: Values) -> Iterator[Ask]:
    # Room for all of them behind one worker, and time, so that none is turned away.
    options = {
        "workers": _WORKERS,
        "request_time_limit": "60s",
        "admission": {"waiting": 2 * max(values)},
    }
    with serving(plan.directory / "connections", **options) as (_, server):
        call, size = server.call(_SIGN), server.probe(_SIGN)

        def ask(count: int) -> Measured:
            # Handshakes take their time, and h2load catches up on the answers afterwards.
            pressure = Pressure(count, 1, settling=0.3 + count / 250)
            return plan.measure(server, call, size, pressure)

        yield ask


@contextmanager
def _roles(plan: Plan, values: Values) -> Iterator[Ask]:
    # h2load repeats one body, so that it is a stream's that names many roles: every one
    # has as many items. One worker, so that chance does not spread streams over several.
    with serving(plan.directory / "roles", workers=1) as (service, server):
        names = put_roles(service, max(values))
        items = max(100, len(names) // 8)
        shapes = {count: Shape(8, items, names[:count]) for count in values}
        sizes = {count: server.probe_stream(_SIGN, shape) for count, shape in shapes.items()}
        two_streams = Pressure(2, 1, requests=2)
        yield lambda count: plan.measure(
            server, server.stream_call(_SIGN, shapes[count]), sizes[count], two_streams
        )


@contextmanager
def _records(plan: Plan, values: Values) -> Iterator[Ask]:
    with ExitStack() as stack:
        servers: dict[int, Meshmint] = {
            count: stack.enter_context(
                serving_with_records(plan.directory / f"records-{count}", count, _WORKERS)
            )
            for count in values
        }
        yield _ask_busy(plan, servers)


def _hsm(workers: int, threads: int) -> Callable[[Plan, Values], AbstractContextManager[Ask]]:
    @contextmanager
    def opened(plan: Plan, _: Values) -> Iterator[Ask]:
        directory = plan.directory / f"hsm-{threads}"
        with serving_from_hsm(directory, threads, workers) as (server, shim, sessions_give):
            call, size = server.call(_SIGN), server.probe(_SIGN)

            def ask(milliseconds: int) -> Measured:
                shim.heal()
                if milliseconds:
                    shim.delay("C_Sign", milliseconds / 1000)
                met = shim.met("C_Sign")
                measured = plan.measure(server, call, size, _BUSY)
                delayed = shim.met("C_Sign") - met
                if not milliseconds:
                    return measured
                if delayed < measured.answers:
                    raise BadRun(f"of {measured.answers} signatures {delayed} were delayed")
                alone = sessions_give(plan.seconds)
                shim.heal()
                return BesideSessions(*astuple(measured), alone)

            yield ask

    return opened


_DELAYS: Final = (0, 1, 5, 20)
# Two sessions either way: at 5 ms, they are what bounds the rate, and not the CPU.
HSM: Final = Sweep("hsm_ms", _DELAYS, (0, 5), _hsm(2, 1))
PROXIED_HSM: Final = Sweep("hsm_ms_p11_kit", _DELAYS, (0, 5), _hsm(1, 2))
SWEEPS: Final = (
    Sweep("workers", (1, 2, 3, 4), (1, 2), _workers),
    Sweep("connections", (1, 16, 64, 256, 1024, 4096), (1, 64), _connections),
    Sweep("roles", (1, 10, 100, 1000), (1, 20), _roles),
    Sweep("records", (0, 100_000, 1_000_000), (0, 1000), _records),
    HSM,
    PROXIED_HSM,
)
