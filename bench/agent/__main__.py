"""How large one agent may get, and what it costs then: `make bench-agent`.

A real `meshmintd serve`, a real `meshmint agent` with 500 certificates, and a client that holds
2,000 streams of SDS and of the Workload API open. It prints a table, and writes
agent-size.json and agent-size.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from peers.surroundings import Surroundings
from rich.console import Console
from support.service import TRUST_DOMAIN, Service

from agent.layout import LIFETIME_SECONDS, ROLE, SHARED, Layout
from agent.measuring import Client, MeasuredAgent
from agent.phases import Plan, Push, add_root, cpu_at_rest, renew, settled
from agent.report import KINDS, Measured, Report

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"

_LAYOUTS: Final = (
    Layout(certificates=500, outputs=100, sockets=50, connections=200),
    Layout(certificates=500, outputs=100, sockets=1, connections=200),
)
_QUICK_LAYOUTS: Final = (Layout(certificates=20, outputs=5, sockets=4, connections=8),)
_QUICK: Final = Plan(starts=1, rest=10.0, ones=1, roots=1, alls=1, soon=10.0, soon_all=10.0)
_PACKAGES: Final = ("meshmint", "cryptography", "grpcio", "protobuf")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints and writes; returns the exit status."""
    options = _parse(arguments)
    console = Console(stderr=True)
    surroundings = Surroundings()
    plan = _QUICK if options.quick else Plan()
    given = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory(prefix="meshmint-", dir=options.directory) as directory:
        measured = _measure(
            Path(directory), _QUICK_LAYOUTS if options.quick else _LAYOUTS, plan, console
        )
    report = Report(
        command=f'make bench-agent AGENT_ARGS="{" ".join(given)}"' if given else "make bench-agent",
        at=datetime.now(UTC),
        machine=surroundings.machine(),
        versions={
            "Python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
        },
        plan=plan,
        measured=measured,
    )
    report.print(Console(width=max(120, console.width)))
    report.write(options.out)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agent", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="20 certificates and 80 streams, in a minute"
    )
    parser.add_argument("--directory", help="where the state is made (default: the temporary one)")
    parser.add_argument("--out", type=Path, default=REFERENCE, help="where the results go")
    return parser.parse_args(arguments)


def _measure(
    directory: Path, layouts: Sequence[Layout], plan: Plan, console: Console
) -> list[Measured]:
    first, *others = found = [Measured(layout) for layout in layouts]
    console.print("starting a service")
    with _serving(directory / "service") as service:
        agent = MeasuredAgent(directory / "agent", service, first.layout)
        try:
            for _ in range(plan.starts):
                agent.forget()
                first.fresh.append(agent.begin())
                console.print(f"agent started with nothing kept in {first.fresh[-1]:.2f} s")
                agent.stop()
            # The first one last: the roots that it adds stay, and make every message longer.
            for measured in (*others, first):
                its = plan if measured is first else plan.once_more
                _start(agent, measured, its.starts, console)
                with _listening(agent, measured, console) as run:
                    if measured is first:
                        run.rest(plan)
                    run.renew(its)
                    if measured is first:
                        run.add_roots(plan, service)
                measured.end = settled(agent)
                agent.stop()
        finally:
            agent.stop()
    return found


def _start(agent: MeasuredAgent, measured: Measured, times: int, console: Console) -> None:
    """Starts it, again and again; it runs in the end."""
    agent.arrange(measured.layout)
    for number in range(times):
        if number:
            agent.stop()
        measured.kept.append(agent.begin())
        console.print(f"agent started with all kept in {measured.kept[-1]:.2f} s")
    measured.alone = settled(agent)


@contextmanager
def _listening(agent: MeasuredAgent, measured: Measured, console: Console) -> Iterator[_Run]:
    client = Client(agent.clients())
    try:
        measured.opened = client.opened_seconds
        console.print(f"{measured.layout.streams:,} streams opened in {measured.opened:.2f} s")
        measured.listening = settled(agent)
        yield _Run(agent, client, measured, console)
    finally:
        client.close()


@dataclass(frozen=True, slots=True)
class _Run:
    """What is done while the streams are open."""

    agent: MeasuredAgent
    client: Client
    measured: Measured
    console: Console

    def rest(self, plan: Plan) -> None:
        self.console.print(f"at rest for {plan.rest:g} s")
        self.measured.at_rest = cpu_at_rest(self.agent, plan.rest)

    def renew(self, plan: Plan) -> None:
        """All certificates, then one several times, then all again."""
        for number in range(plan.alls):
            self._note("all", renew(self.agent, self.client, self.measured.layout.names, plan))
            if number == 0:
                for _ in range(plan.ones):
                    self._note("one", renew(self.agent, self.client, [SHARED], plan))
        self.agent.rest()

    def add_roots(self, plan: Plan, service: Service) -> None:
        for number in range(plan.roots):
            self._note("root", add_root(self.agent, self.client, service, f"issuer-{number + 2}"))

    def _note(self, kind: str, push: Push) -> None:
        self.measured.pushes.setdefault(kind, []).append(push)
        self.console.print(f"{KINDS[kind]}: {push.last:.3f} s until the last push")


@contextmanager
def _serving(directory: Path) -> Iterator[Service]:
    service = Service(directory, workers=1, jwt_svid={"enabled": True})
    service.start()
    try:
        service.put_named_role(
            ROLE,
            {
                "spiffe": "matching",
                "allowed_uri_sans": [f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/*"],
                "key_type": "ec",
                "key_bits": 256,
                "ttl": f"{LIFETIME_SECONDS}s",
                "max_ttl": f"{LIFETIME_SECONDS}s",
            },
        )
        yield service
    finally:
        service.stop()


if __name__ == "__main__":
    sys.exit(main())
