"""The comparison: all servers up side by side, one asked at a time, turn and turn about.

Nothing is measured that is not shown to be true: before a server is timed an ordinary
client has it make each kind of certificate and checks it, answers have the size of that
one, and afterwards the store holds a record for each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

from peers.floor import KINDS, REPLY, Floor
from peers.load import BadRun, Call, Pressure, frame, measure
from peers.meshmint import Meshmint
from peers.openbao import OpenBao
from peers.processes import cpu_seconds, resident_bytes
from peers.results import OURS, OURS_SHARED, PEER, STREAM, UNARY, Results, Sample
from peers.workload import STREAMED, WORKS, Server, Work

__all__ = ["PRESSURES", "Comparison", "Plan"]

# 1, 16 and 64 requests in flight.
PRESSURES: Final = (Pressure(1, 1), Pressure(16, 1), Pressure(16, 4))
# At a given rate a request waits for no other's answer, unless this many are behind.
_PACED_STREAMS: Final = 64
_PACED_CONNECTIONS: Final = 16
# Enough that no worker of a few has none by chance, and few enough that no item is refused.
_STREAMS: Final = Pressure(8, 1)
# A stream takes long: a turn of theirs has so many times a turn's length.
_STREAM_TURN: Final = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done.

    Attributes:
        rounds: How often each server has its turn at each kind of work.
        seconds: Of one turn.
    """

    rounds: int
    seconds: float

    @property
    def turns(self) -> int:
        """How often h2load is run in all: records are made by three servers, the rest by two."""
        top = len(PRESSURES) * sum(3 if work.is_recorded else 2 for work in WORKS)
        return self.rounds * (top + 2 * len(WORKS) + 2 * len(STREAMED) + len(KINDS))


class Comparison:
    """One run of it.

    Args:
        plan: How much is done.
        directory: Where servers keep what they store; on the disk that is meant.
        tell: Called before each turn with what is asked of whom.
    """

    def __init__(self, plan: Plan, directory: Path, tell: Callable[[str], None]) -> None:
        self._plan = plan
        self._directory = directory
        self._tell = tell
        self._servers: list[Server] = []
        self._sizes: dict[tuple[str, Work], int] = {}
        self._answers: dict[str, int] = {}

    def run(self) -> Results:
        """Starts everything, measures, ends everything.

        Raises:
            BadRun: What was measured is not what was meant.
        """
        results = Results()
        with ExitStack() as stack:
            self._tell("starting the servers")
            start = stack.enter_context
            ours = start(Meshmint.with_sqlite(self._directory / OURS))
            self._servers = [
                start(OpenBao.running(self._directory / PEER)),
                ours,
                start(Meshmint.with_postgresql(self._directory / OURS_SHARED)),
            ]
            memory = {server.name: resident_bytes(server.pids) for server in self._servers}
            self._probe()
            recorded = {server.name: server.count_records() for server in self._servers}
            self._answers = dict.fromkeys(recorded, 0)
            self._measure_top_rates(results)
            self._measure_at_half_rate(results)
            self._measure_streams(ours, results)
            self._measure_floor(start(Floor.running(self._directory / "floor")), results)
            for server in self._servers:
                made = server.count_records() - recorded[server.name]
                if made < self._answers[server.name]:
                    raise BadRun(
                        f"{server.name} answered {self._answers[server.name]} times, and has"
                        f" {made} records of it"
                    )
                results.memory[server.name] = memory[server.name], resident_bytes(server.pids)
        return results

    def _probe(self) -> None:
        for server, work in product(self._servers, WORKS):
            self._sizes[server.name, work] = server.probe(work)

    def _measure_top_rates(self, results: Results) -> None:
        for turn in range(self._plan.rounds):
            for work, pressure in product(WORKS, PRESSURES):
                in_flight = pressure.connections * pressure.streams
                for server in self._in_turn(work, turn):
                    self._tell(f"{work.name}, {in_flight} in flight: {server.name}")
                    sample = self._sample(server, work, pressure)
                    results.top[work.name, in_flight][server.name].append(sample)

    def _measure_at_half_rate(self, results: Results) -> None:
        for turn, work in product(range(self._plan.rounds), WORKS):
            rate = statistics.median(results.best_rates(work, OURS)) / 2
            results.pace[work.name] = rate
            pressure = Pressure(_PACED_CONNECTIONS, _PACED_STREAMS, rate)
            for server in self._in_turn(work, turn):
                if server.name in (OURS, PEER):
                    self._tell(f"{work.name}, {rate:.0f}/s: {server.name}")
                    results.paced[work.name][server.name].append(
                        self._sample(server, work, pressure)
                    )

    def _measure_streams(self, server: Meshmint, results: Results) -> None:
        """Streams beside unary requests, of which as many are in flight as suit those best."""
        sizes = {work: server.probe_stream(work) for work in STREAMED}
        for turn, work in product(range(self._plan.rounds), STREAMED):
            call = server.stream_call(work)
            in_flight = results.best_in_flight(work, OURS)
            unary = next(one for one in PRESSURES if one.connections * one.streams == in_flight)
            long = self._plan.seconds * _STREAM_TURN
            for how in (UNARY, STREAM) if turn % 2 == 0 else (STREAM, UNARY):
                self._tell(f"{work.name}, {how}: {server.name}")
                if how == UNARY:
                    sample = self._sample(server, work, unary)
                else:
                    sample = self._sample_call(
                        server, work, call, sizes[work], _STREAMS, seconds=long
                    )
                results.streams[work.operation][how].append(sample)
        if refused := server.count_refused_items():
            raise BadRun(f"{refused} items of streams were refused")

    def _measure_floor(self, floor: Floor, results: Results) -> None:
        for turn in range(self._plan.rounds):
            first = turn % len(KINDS)
            for kind in (*KINDS[first:], *KINDS[:first]):
                self._tell(f"the least, {kind}")
                results.floor[kind].append(
                    self._time(floor.pids, floor.call(kind), len(frame(REPLY)), PRESSURES[-1])
                )

    def _in_turn(self, work: Work, turn: int) -> Iterator[Server]:
        """Another one first in each round; without a record the kind of store is of no account."""
        servers: Sequence[Server] = [
            server for server in self._servers if work.is_recorded or server.name in (OURS, PEER)
        ]
        first = turn % len(servers)
        yield from (*servers[first:], *servers[:first])

    def _sample(self, server: Server, work: Work, pressure: Pressure) -> Sample:
        size = self._sizes[server.name, work]
        call = server.call(work)
        return self._sample_call(server, work, call, size, pressure, seconds=self._plan.seconds)

    def _sample_call(
        self,
        server: Server,
        work: Work,
        call: Call,
        size: int,
        pressure: Pressure,
        *,
        seconds: float,
    ) -> Sample:
        sample = self._time(server.pids, call, size, pressure, seconds)
        if work.is_recorded:
            self._answers[server.name] += sample.measured.answers
        return sample

    def _time(
        self,
        pids: Sequence[int],
        call: Call,
        size: int,
        pressure: Pressure,
        seconds: float | None = None,
    ) -> Sample:
        before = cpu_seconds(pids)
        measured = measure(call, size, pressure, seconds or self._plan.seconds, self._directory)
        cpu = cpu_seconds(pids) - before
        return Sample(measured, cpu / measured.answers * 1000)
