"""A fleet and a service, through whatever happens to them, in steps of a tenth of a second.

Every workload has a certificate, and an agent that decides by its own code (`fleet.agent`). What
it wants of the service takes the time that was measured (`fleet.measured`). Networks take none.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from heapq import heappop, heappush
from itertools import count
from random import Random

from meshmint.agent.config import RenewalSettings
from meshmint.errors import DeadlineExceeded, MeshmintError, ResourceExhausted, Unavailable
from meshmint.retry import Attempts

from fleet.agent import Agent
from fleet.course import STEP, Course
from fleet.measured import Replica
from fleet.service import Service

__all__ = ["Absence", "Event", "Fleet", "Restart", "simulate"]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Who wants certificates.

    Attributes:
        workloads: How many.
        lifetime: Of a certificate, seconds.
        renewal: The agents' settings.
        workloads_per_agent: How many share an agent, and with it a connection.
    """

    workloads: int = 1_000_000
    lifetime: float = 3600.0
    renewal: RenewalSettings = field(default_factory=RenewalSettings)
    workloads_per_agent: int = 1


@dataclass(frozen=True, slots=True)
class Restart:
    """A part of the fleet stops, and starts again.

    Attributes:
        at: When, seconds.
        one_of: One of so many agents.
        within: Seconds in which all of it starts again, evenly.
        keeps: Whether `state_dir` is still there, with the certificates.
    """

    at: float
    one_of: int = 3
    within: float = 60.0
    keeps: bool = False


@dataclass(frozen=True, slots=True)
class Absence:
    """The service is away: connections break, and new ones are refused.

    Attributes:
        at: From when, seconds.
        seconds: For how long.
    """

    at: float
    seconds: float


Event = Restart | Absence | None


def simulate(
    fleet: Fleet,
    replica: Replica,
    replicas: float,
    event: Event,
    *,
    hours: float,
    one_in: int = 1,
    seed: int = 1,
) -> Course:
    """Lets so many hours pass.

    Args:
        fleet: Who wants certificates; it has run for long, and its renewals are spread.
        replica: What one replica does.
        replicas: How many there are.
        event: What happens, if anything does.
        hours: For how long.
        one_in: Simulates one of so many workloads, and so much less of a service.
        seed: Of all chance.
    """
    run = _Run(fleet, Service(replica, replicas, STEP, one_in), replica.retry_after, one_in, seed)
    run.expect(event)
    last = round(hours * 3600 / STEP)
    while (step := run.next_step()) < last:
        run.do(step)
    run.end(last)
    return run.course


class _Connection(IntEnum):
    """That of an agent to the service."""

    NONE = 0
    BEING_MADE = 1
    MADE = 2


class _Run:
    """The state of everything in a run."""

    def __init__(
        self, fleet: Fleet, service: Service, retry_after: float, one_in: int, seed: int
    ) -> None:
        size = fleet.workloads // one_in
        agents = -(-size // fleet.workloads_per_agent)
        self.course = Course(one_in)
        self._lifetime = fleet.lifetime
        self._per_agent = fleet.workloads_per_agent
        self._chance = Random(seed)  # noqa: S311 - a simulation
        self._agent = Agent(fleet.renewal, fleet.lifetime, self._chance, lambda: self._now)
        self._service = service
        self._refused = ResourceExhausted("", reason="OVERLOADED", retry_after=retry_after)
        self._unavailable = Unavailable("")
        self._too_late = DeadlineExceeded("")
        self._step = -1
        self._now = 0.0
        self._happenings: dict[int, Callable[[], None]] = {}
        # Until when the service is away.
        self._back_at = 0.0
        # When an event was over; what workloads then waited for is counted from there.
        self._over_at = 0.0
        self._is_awaited = bytearray(size)
        # Of workloads: when they got their certificates, or else since when they run without;
        # calls that failed in a row; the call under way, its request, and whether it waits for
        # what may come too late.
        self._obtained: list[float | None] = [None] * size
        self._without: dict[int, float] = {}
        self._failures: dict[int, int] = {}
        self._calls: dict[int, Attempts] = {}
        self._request: dict[int, int] = {}
        self._is_patient = bytearray(size)
        # Of requests that have no answer: whose they are, and since when.
        self._requests: dict[int, tuple[int, float]] = {}
        self._numbers = count()
        # When each does something next, who does at a step, and which steps there are; who
        # thinks better of it stays in that list, and is passed over.
        self._planned = [-1] * size
        self._agenda: dict[int, list[int]] = {}
        self._steps: list[int] = []
        # Of agents: their connections, who of their workloads waits for them, and who connects
        # at a step.
        self._connection = bytearray([_Connection.MADE]) * agents
        self._patient: defaultdict[int, list[int]] = defaultdict(list)
        self._connects: dict[int, list[int]] = {}
        for workload in range(size):
            self._begin_at_rest(workload)

    def _begin_at_rest(self, workload: int) -> None:
        """Anywhere between two renewals: in a long interval more likely than in a short one."""
        while True:
            interval = self._agent.renews_after()
            if self._chance.random() * self._lifetime < interval:
                break
        age = interval * self._chance.random()
        self._obtained[workload] = -age
        self._plan(workload, interval - age)

    # --- time --------------------------------------------------------------------------------

    def expect(self, event: Event) -> None:
        """Says what will happen."""
        if isinstance(event, Restart):
            self._happen(event.at, lambda: self._restart(event))
        elif isinstance(event, Absence):
            back_at = event.at + event.seconds
            self._happen(event.at, lambda: self._go(back_at))
            self._happen(back_at, self._return)

    def _happen(self, moment: float, what: Callable[[], None]) -> None:
        step = round(moment / STEP)
        self._happenings[step] = what
        heappush(self._steps, step)

    def next_step(self) -> int:
        """The next step at which there is anything to do."""
        if self._service.is_busy:
            return self._step + 1
        while self._steps and self._steps[0] <= self._step:
            heappop(self._steps)
        return self._steps[0] if self._steps else sys.maxsize

    def do(self, step: int) -> None:
        """Everything that happens at a step."""
        self._step, self._now = step, step * STEP
        if step in self._happenings:
            self._happenings[step]()
        for agent in self._connects.pop(step, ()):
            self._connection[agent] = _Connection.BEING_MADE
            self._service.connect(agent)
        for workload in self._agenda.pop(step, ()):
            if self._planned[workload] == step:
                self._planned[workload] = -1
                self._act(workload)
        done = self._service.work(self._now)
        for agent in done.connected:
            self._connected(agent)
        for request in done.answered:
            self._answered(request)
        for request in done.refused:
            self._ended("refused", request, self._refused)
        for request in done.late:
            self._ended("late", request, self._too_late)
        self.course.look(step, waiting=self._service.waiting, connecting=self._service.connecting)

    def _plan(self, workload: int, moment: float) -> None:
        self._planned[workload] = self._put(self._agenda, workload, moment)

    def _put(self, agenda: dict[int, list[int]], who: int, moment: float) -> int:
        step = max(self._step + 1, math.ceil(moment / STEP))
        if step in agenda:
            agenda[step].append(who)
        else:
            agenda[step] = [who]
            heappush(self._steps, step)
        return step

    def end(self, step: int) -> None:
        """What goes on at the last step is counted as if it ended there."""
        self._now = step * STEP
        self.course.end(step)
        for _ in range(self._service.unanswered()):
            self.course.count("unanswered", step - 1)
        for workload, obtained in enumerate(self._obtained):
            since = self._without[workload] if obtained is None else obtained + self._lifetime
            if since < self._now:
                self.course.lapsed(since, self._now)

    # --- a workload --------------------------------------------------------------------------

    def _act(self, workload: int) -> None:
        if workload not in self._calls:
            if self._now < self._back_at:
                self._try_in_vain(workload)
                return
            self._calls[workload] = self._agent.call()
            self._send(workload)
        elif self._is_patient[workload]:
            self._is_patient[workload] = False
            self._request.pop(workload, None)
            self._failed(workload, self._too_late)
        else:
            self._send(workload)

    def _send(self, workload: int) -> None:
        """One attempt of a call."""
        agent = workload // self._per_agent
        connection = self._connection[agent]
        patience = self._calls[workload].left()
        if connection == _Connection.NONE:
            self._failed(workload, self._unavailable)
        elif connection == _Connection.BEING_MADE:
            self._patient[agent].append(workload)
            self._wait(workload, patience)
        else:
            request = self._request[workload] = next(self._numbers)
            self._requests[request] = workload, self._now
            self.course.count("arrived", self._step)
            if not self._service.ask(request, self._now, patience):
                self._wait(workload, patience)

    def _wait(self, workload: int, patience: float) -> None:
        self._is_patient[workload] = True
        self._plan(workload, self._now + patience)

    def _ended(self, how: str, request: int, error: MeshmintError) -> None:
        """A request has got no certificate."""
        self.course.count(how, self._step)
        workload, _ = self._requests.pop(request)
        if self._request.get(workload) == request:
            del self._request[workload]
            self._is_patient[workload] = False
            self._planned[workload] = -1
            self._failed(workload, error)

    def _failed(self, workload: int, error: MeshmintError) -> None:
        """An attempt has; there is another, of the same call or of one to come."""
        wait = self._calls[workload].pause_after(error)
        if wait is None:
            del self._calls[workload]
            wait = self._pause(workload, self._now, error)
        self._plan(workload, self._now + wait)

    def _try_in_vain(self, workload: int) -> None:
        """Call after call, while the service is away: nothing else can happen meanwhile."""
        moment = self._now
        while moment < self._back_at:
            moment += self._agent.call_in_vain()
            moment += self._pause(workload, moment, self._unavailable)
        self._plan(workload, moment)

    def _pause(self, workload: int, moment: float, error: MeshmintError) -> float:
        """Until the next call, after one that failed."""
        failures = self._failures[workload] = self._failures.get(workload, 0) + 1
        obtained = self._obtained[workload]
        age = None if obtained is None else moment - obtained
        return self._agent.pause(failures, age, error)

    def _answered(self, request: int) -> None:
        self.course.count("answered", self._step)
        workload, asked = self._requests.pop(request)
        self.course.waits[round((self._now - asked) / STEP)] += 1
        if self._request.get(workload) != request:
            # It has restarted since.
            return
        del self._request[workload]
        del self._calls[workload]
        self._failures.pop(workload, None)
        obtained = self._obtained[workload]
        since = self._without.pop(workload) if obtained is None else obtained + self._lifetime
        if since < self._now:
            self.course.lapsed(since, self._now)
        if self._is_awaited[workload]:
            self._is_awaited[workload] = False
            self.course.served(self._now - self._over_at)
        self._obtained[workload] = self._now
        self._plan(workload, self._now + self._agent.renews_after())

    def _connected(self, agent: int) -> None:
        self._connection[agent] = _Connection.MADE
        for workload in self._patient.pop(agent, ()):
            if self._is_patient[workload]:
                self._is_patient[workload] = False
                self._planned[workload] = -1
                self._send(workload)

    # --- events ------------------------------------------------------------------------------

    def _restart(self, event: Restart) -> None:
        self._over_at = self._now
        awaited = 0
        for agent in range(0, len(self._connection), event.one_of):
            start = self._now + event.within * self._chance.random()
            self._connection[agent] = _Connection.NONE
            self._put(self._connects, agent, start)
            first = agent * self._per_agent
            for workload in range(first, min(first + self._per_agent, len(self._obtained))):
                awaited += self._start_again(workload, start, keeps=event.keeps)
        self.course.await_(awaited)

    def _start_again(self, workload: int, start: float, *, keeps: bool) -> bool:
        """Forgets all but a good certificate that is kept; tells whether it asks at once."""
        for state in (self._calls, self._failures, self._request):
            state.pop(workload, None)
        self._is_patient[workload] = False
        obtained = self._obtained[workload]
        if not keeps or obtained is None or obtained + self._lifetime <= start:
            self._obtained[workload] = None
            self._without[workload] = due = start
        else:
            due = obtained + self._agent.renews_after()
        self._plan(workload, max(start, due))
        self._is_awaited[workload] = due <= start
        return due <= start

    def _go(self, back_at: float) -> None:
        self._back_at = back_at
        for agent in range(len(self._connection)):
            self._connection[agent] = _Connection.NONE
        for request in self._service.go():
            self._ended("lost", request, self._unavailable)

    def _return(self) -> None:
        self._over_at = self._now
        for agent in range(len(self._connection)):
            moment = self._now + self._agent.reconnects_after()
            self._put(self._connects, agent, moment)
        overdue = self._calls.keys() | self._failures.keys()
        for workload in overdue:
            self._is_awaited[workload] = True
        self.course.await_(len(overdue))
