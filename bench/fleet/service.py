"""The service as its clients meet it: all replicas as one, and what they get done step by step.

A request is answered, refused because too many wait, or ended because its time is over; none is
forgotten. Replicas have their even share of connections and requests.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from fleet.measured import Replica

__all__ = ["Done", "Service"]


@dataclass(slots=True)
class Done:
    """What a step has brought.

    Attributes:
        connected: Agents whose connections are made.
        answered: Requests that got a certificate.
        refused: Requests for which there was no room.
        late: Requests that waited until their time was over.
    """

    connected: list[int] = field(default_factory=list)
    answered: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    late: list[int] = field(default_factory=list)


class _Other(IntEnum):
    """Work that makes no certificate."""

    CONNECTION = 0
    REFUSAL = 1
    # Of who was told at once, when the time was over.
    LATE = 2


class Service:
    """So many replicas.

    Certificates have one half of the time, and all other work has the other, while both wait.

    Args:
        replica: What one of them does.
        replicas: How many there are.
        step: Seconds of a step.
        one_in: One workload stands for so many, so the service does so much less.
    """

    def __init__(self, replica: Replica, replicas: float, step: float, one_in: int = 1) -> None:
        self._budget = replicas * step / one_in
        self._certificate = 1 / replica.certificates
        self._costs = {
            # And on each the stream that watches the trust bundle.
            _Other.CONNECTION: replica.handshake + replica.aside,
            _Other.REFUSAL: replica.aside,
            _Other.LATE: replica.aside,
        }
        self._room = max(1, round(replicas * replica.room / one_in))
        self._time_limit = replica.time_limit
        self._requests: deque[tuple[int, float]] = deque()
        self._others: deque[tuple[_Other, int]] = deque()
        self._connecting = 0
        # Seconds of replicas that are left to spend, or below nothing if more were spent.
        self._left = 0.0
        # What other work has had more than certificates, since both wait.
        self._lead = 0.0

    @property
    def connecting(self) -> int:
        """Agents whose connections are not made yet."""
        return self._connecting

    @property
    def waiting(self) -> int:
        """Requests that wait for their certificates."""
        return len(self._requests)

    @property
    def is_busy(self) -> bool:
        """Whether it has anything to do, or to make good for."""
        return bool(self._others or self._requests or self._left < 0)

    def connect(self, agent: int) -> None:
        """An agent wants a connection, and stays until it has one."""
        self._others.append((_Other.CONNECTION, agent))
        self._connecting += 1

    def ask(self, request: int, now: float, patience: float) -> bool:
        """A request arrives; False if there is no room, and it will be refused.

        Args:
            request: Its number.
            now: The present second.
            patience: For how many seconds its client waits.
        """
        if len(self._requests) >= self._room:
            self._others.append((_Other.REFUSAL, request))
            return False
        self._requests.append((request, now + min(patience, self._time_limit)))
        return True

    def work(self, now: float) -> Done:
        """What gets done within one step."""
        done = Done()
        self._left += self._budget
        while self._requests and self._requests[0][1] <= now:
            done.late.append(self._requests.popleft()[0])
            self._others.append((_Other.LATE, -1))
        while self._left > 0 and (self._others or self._requests):
            if self._others and (self._lead <= 0 or not self._requests):
                other, who = self._others.popleft()
                self._spend(self._costs[other], self._costs[other])
                if other is _Other.CONNECTION:
                    self._connecting -= 1
                    done.connected.append(who)
                elif other is _Other.REFUSAL:
                    done.refused.append(who)
            else:
                done.answered.append(self._requests.popleft()[0])
                self._spend(self._certificate, -self._certificate)
        if not (self._others and self._requests):
            self._lead = 0.0
            if not self._others and not self._requests:
                # Time that nobody wanted cannot be kept.
                self._left = min(self._left, 0.0)
        return done

    def _spend(self, seconds: float, lead: float) -> None:
        self._left -= seconds
        self._lead += lead

    def go(self) -> list[int]:
        """The service goes away; returns the requests that have no answer."""
        lost = [request for request, _ in self._requests]
        lost += [who for other, who in self._others if other is _Other.REFUSAL]
        self._requests.clear()
        self._others.clear()
        self._connecting = 0
        return lost

    def unanswered(self) -> int:
        """How many requests have no answer."""
        return len(self._requests) + sum(other is _Other.REFUSAL for other, _ in self._others)
