"""What is measured, phase by phase, of one agent and one client.

Each function does one thing and returns what it found, in seconds, MiB and MB.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from support.service import Service

from agent.layout import ROOTS
from agent.measuring import Client, MeasuredAgent, Use
from agent.streams import root_mark, serial_mark

__all__ = ["Plan", "Push", "add_root", "cpu_at_rest", "renew", "settled"]

_SETTLE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long.

    Attributes:
        starts: How often the agent is started, with nothing kept, and again with all kept.
        rest: How long it is watched at rest, in seconds.
        ones: How often the one certificate is renewed that all sockets serve.
        roots: How often there is a new root.
        alls: How often all certificates are renewed.
        soon: After so many seconds a certificate may be renewed, if it is one alone.
        soon_all: The same if all are; longer than it takes to renew them all.
    """

    starts: int = 3
    rest: float = 120.0
    ones: int = 5
    roots: int = 3
    alls: int = 2
    soon: float = 8.0
    soon_all: float = 20.0

    @property
    def once_more(self) -> Plan:
        """For what is shown beside."""
        return replace(self, starts=1, ones=min(self.ones, 3), alls=1)


@dataclass(frozen=True, slots=True)
class Push:
    """One change, and its way to the streams.

    Attributes:
        obtained: From the first certificate that the agent got to the last one.
        delays: From when the agent had a certificate, or the bundle, to when the last stream that
            watches it had read it; for each of them.
        last: From when it had the last one to when the last stream had read it.
        streams: How many streams watch what has changed, or a part of it.
        messages: How many messages they were sent.
        megabytes: How long those were together.
        cpu: CPU seconds of the agent, from when it asked for the certificates on.
    """

    obtained: float
    delays: tuple[float, ...]
    last: float
    streams: int
    messages: int
    megabytes: float
    cpu: float


def settled(agent: MeasuredAgent) -> Use:
    """What the agent uses when what it was doing is over."""
    time.sleep(_SETTLE_SECONDS)
    return agent.use()


def cpu_at_rest(agent: MeasuredAgent, seconds: float) -> float:
    """CPU seconds in a minute."""
    before, began = agent.use(), time.monotonic()
    time.sleep(seconds)
    return (agent.use().cpu - before.cpu) / (time.monotonic() - began) * 60


def renew(agent: MeasuredAgent, client: Client, names: Iterable[str], plan: Plan) -> Push:
    """Renews certificates at one moment."""
    wanted = tuple(names)
    client.forget()
    # Reading a configuration has every certificate looked at whose section has changed.
    settle = 2.0 + len(wanted) / 100
    renewed = agent.renew(wanted, plan.soon if len(wanted) == 1 else plan.soon_all, settle)
    newest = max(renewed.times[name] for name in wanted)
    found = client.read({name: serial_mark(renewed.serials[name]) for name in wanted}, newest)
    after = agent.use()
    watched = found["watched"]
    return Push(
        obtained=newest - min(renewed.times[name] for name in wanted),
        delays=tuple(watched[name]["last"] - renewed.times[name] for name in wanted),
        last=max(one["last"] for one in watched.values()) - newest,
        streams=found["streams"],
        messages=found["messages"],
        megabytes=found["bytes"] / 1e6,
        cpu=after.cpu - renewed.before.cpu,
    )


def add_root(agent: MeasuredAgent, client: Client, service: Service, name: str) -> Push:
    """Has the service trust one more root."""
    client.forget()
    roots = []
    before = agent.use()
    got_at = agent.take_root(lambda: roots.append(service.add_issuer(name)))
    found = client.read({ROOTS: root_mark(roots[0])}, got_at)
    delay = found["watched"][ROOTS]["last"] - got_at
    return Push(
        obtained=0.0,
        delays=(delay,),
        last=delay,
        streams=found["streams"],
        messages=found["messages"],
        megabytes=found["bytes"] / 1e6,
        cpu=agent.use().cpu - before.cpu,
    )
