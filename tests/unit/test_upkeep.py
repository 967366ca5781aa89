"""The upkeep: duties run on the leader alone, and one that fails stops no other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from meshmint_server.app import upkeep
from meshmint_server.app.upkeep import Duty, Upkeep
from meshmint_server.errors import KeyUnavailable


class Claim:
    """A claim that is held when the test says so."""

    def __init__(self, *, is_free: bool) -> None:
        self.is_free = is_free
        self.is_released = False

    async def hold(self) -> bool:
        return self.is_free

    async def release(self) -> None:
        self.is_released = True


class Count:
    """A duty that counts how often it was done."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.runs = 0
        self._fault = fault
        self._changed = asyncio.Condition()

    async def run(self) -> None:
        async with self._changed:
            self.runs += 1
            self._changed.notify_all()
        if self._fault is not None:
            raise self._fault

    async def reaches(self, runs: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self.runs >= runs)


@pytest.fixture(autouse=True)
def _quick_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_CLAIM_SECONDS", 0.001)


@asynccontextmanager
async def running(claim: Claim, *duties: Duty) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(Upkeep(claim, duties).run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BaseExceptionGroup):
            await task


async def test_duties_wait_for_the_leadership_and_end_with_it() -> None:
    claim, count = Claim(is_free=False), Count()
    async with running(claim, Duty("count", count.run, 0.001)):
        await asyncio.sleep(0.05)
        assert count.runs == 0
        claim.is_free = True
        await count.reaches(3)
        claim.is_free = False
        await asyncio.sleep(0.05)
        seen = count.runs
        await asyncio.sleep(0.05)
        assert count.runs == seen


async def test_a_duty_that_fails_is_tried_again_and_stops_no_other() -> None:
    failing, other = Count(KeyUnavailable("The token is away.")), Count()
    duties = Duty("failing", failing.run, 0.001), Duty("other", other.run, 0.001)
    async with running(Claim(is_free=True), *duties):
        await failing.reaches(3)
        await other.reaches(3)


async def test_a_bug_in_a_duty_ends_the_upkeep_and_frees_the_leadership() -> None:
    claim, buggy = Claim(is_free=True), Count(ZeroDivisionError())
    async with running(claim, Duty("buggy", buggy.run, 0.001)) as task:
        with pytest.raises(ExceptionGroup):
            await task
        assert claim.is_released


async def test_the_leadership_is_given_back_at_the_end() -> None:
    claim, count = Claim(is_free=True), Count()
    async with running(claim, Duty("count", count.run, 0.001)):
        await count.reaches(1)
    assert claim.is_released
