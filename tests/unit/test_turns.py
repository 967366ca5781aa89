"""Turns: how many at once, who waits, and that hanging up gains nothing."""

from __future__ import annotations

import asyncio

import pytest
from meshmint_server.errors import Overloaded
from meshmint_server.issuance.turns import Turns


class Work:
    """Work that ends when it is told to."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.may_end = asyncio.Event()

    def start(self, turns: Turns, number: int) -> asyncio.Task[int]:
        async def work() -> int:
            self.begun.append(number)
            await self.may_end.wait()
            return number

        return asyncio.create_task(turns.run(work))


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_so_many_at_once_and_the_others_in_their_order() -> None:
    turns, work = Turns(2, 10), Work()
    tasks = [work.start(turns, number) for number in range(5)]
    await settle()
    assert work.begun == [0, 1]
    work.may_end.set()
    assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4]
    assert work.begun == [0, 1, 2, 3, 4]


async def test_a_line_that_is_full_turns_away_until_somebody_leaves_it() -> None:
    turns, work = Turns(1, 2), Work()
    tasks = [work.start(turns, number) for number in range(3)]
    await settle()
    with pytest.raises(Overloaded):
        await work.start(turns, 3)
    tasks[2].cancel()
    await settle()
    tasks[2] = work.start(turns, 4)
    await settle()
    work.may_end.set()
    assert await asyncio.gather(*tasks) == [0, 1, 4]


async def test_who_hangs_up_keeps_the_turn_for_as_long_as_the_work_takes() -> None:
    turns, work = Turns(1, 10), Work()
    first, second = work.start(turns, 0), work.start(turns, 1)
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    assert work.begun == [0]
    work.may_end.set()
    assert await second == 1


async def test_work_that_fails_gives_its_turn_back() -> None:
    turns = Turns(1, 10)

    async def work() -> None:
        raise ValueError

    for _ in range(3):
        with pytest.raises(ValueError):  # noqa: PT011
            await turns.run(work)
