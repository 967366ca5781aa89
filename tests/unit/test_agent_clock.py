"""The agent notices when somebody sets the clock, and looks again at what it planned."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from meshmint.agent.clock import Clock


class Clocks:
    """A wall clock and a monotonic one that a test moves."""

    def __init__(self) -> None:
        self.wall = datetime(2030, 5, 1, tzinfo=UTC)
        self.monotonic = 1000.0

    def pass_time(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.monotonic += seconds

    def clock(self) -> Clock:
        return Clock(lambda: self.wall, lambda: self.monotonic)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 2.5])
async def test_a_step_is_told_once_with_its_size(seconds: float) -> None:
    clocks = Clocks()
    clock = clocks.clock()
    clocks.pass_time(30)
    assert not clock.step()
    clocks.wall += timedelta(seconds=seconds)
    assert clock.step() == timedelta(seconds=seconds)
    clocks.pass_time(30)
    assert not clock.step()


async def test_a_clock_that_is_slewed_is_no_step_however_long_it_takes() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    for _ in range(100):
        clocks.pass_time(2)
        clocks.wall += timedelta(seconds=0.1)
        assert not clock.step()


async def test_who_waits_for_a_moment_looks_again_after_a_step() -> None:
    clocks = Clocks()
    clock = clocks.clock()
    waiting = asyncio.create_task(clock.wait_until(clocks.wall + timedelta(days=1)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    clocks.wall += timedelta(days=2)
    clock.step()
    await asyncio.wait_for(waiting, 30)


async def test_who_waits_can_be_woken() -> None:
    clocks = Clocks()
    woken = asyncio.Event()
    waiting = asyncio.create_task(clocks.clock().wait_until(clocks.wall + timedelta(days=1), woken))
    await asyncio.sleep(0)
    woken.set()
    await asyncio.wait_for(waiting, 30)
