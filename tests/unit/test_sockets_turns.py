"""Turns to write large messages: bounded, in order, and not held up by who does not read."""

from __future__ import annotations

import asyncio

import pytest
from meshmint.agent.sockets.turns import Turns

LARGE = 1000


class Writers:
    """Tasks that write for as long as nobody lets them go on."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.writing: list[int] = []
        self.gates: dict[int, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    def begin(self, number: int, size: int = LARGE) -> None:
        self.gates[number] = asyncio.Event()
        self.tasks.append(asyncio.create_task(self._write(number, size)))

    async def _write(self, number: int, size: int) -> None:
        async with self.turns.turn(size):
            self.writing.append(number)
            await self.gates[number].wait()

    async def until(self, count: int) -> None:
        while len(self.writing) < count:  # noqa: ASYNC110, nobody tells
            await asyncio.sleep(0.005)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_large_messages_are_written_at_once_and_the_next_in_order() -> None:
    writers = Writers(Turns(2, large=LARGE, patience=3600))
    for number in range(4):
        writers.begin(number)
    await settled()
    assert writers.writing == [0, 1]
    writers.gates[1].set()
    await settled()
    assert writers.writing == [0, 1, 2]
    for gate in writers.gates.values():
        gate.set()
    await asyncio.gather(*writers.tasks)
    assert writers.writing == [0, 1, 2, 3]


async def test_small_messages_wait_for_nobody() -> None:
    writers = Writers(Turns(1, large=LARGE, patience=3600))
    for number, size in enumerate([LARGE, LARGE - 1, LARGE - 1]):
        writers.begin(number, size)
    await settled()
    assert writers.writing == [0, 1, 2]
    for gate in writers.gates.values():
        gate.set()
    await asyncio.gather(*writers.tasks)


async def test_a_client_that_does_not_read_keeps_nobody_waiting_for_long() -> None:
    writers = Writers(Turns(1, large=LARGE, patience=0.01))
    for number in range(5):
        writers.begin(number)
    await writers.until(5)
    for gate in writers.gates.values():
        gate.set()
    await asyncio.gather(*writers.tasks)


@pytest.mark.parametrize("is_given_up", [False, True])
async def test_a_turn_is_given_back_once_also_by_who_is_cancelled(is_given_up: bool) -> None:
    turns = Turns(1, large=LARGE, patience=0.01 if is_given_up else 3600)
    writers = Writers(turns)
    writers.begin(0)
    await writers.until(1)
    if is_given_up:
        writers.begin(1)
        await writers.until(2)
    for task in writers.tasks:
        task.cancel()
    await asyncio.gather(*writers.tasks, return_exceptions=True)
    patient = Writers(turns)
    turns._patience = 3600
    for number in range(3):
        patient.begin(number)
    await settled()
    assert patient.writing == [0]
    for gate in patient.gates.values():
        gate.set()
    await asyncio.gather(*patient.tasks)
