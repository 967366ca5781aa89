"""Group commit by itself: who is released when, and who fails with whom."""

import asyncio
from collections.abc import Collection, Sequence

import pytest
from meshmint_server.errors import Overloaded, StoreUnavailable
from meshmint_server.store.database import RowRefused
from meshmint_server.store.recorder import Recorder
from meshmint_server.store.rows import RecordRow
from support.rows import record_row


class Disk:
    """Commits when it is let, and refuses what it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[RecordRow]] = []
        self.started = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.refused: set[str] = set()
        self.broken = False
        self.outrun: set[str] = set()
        self.has_bug = False

    async def commit(self, rows: Sequence[RecordRow]) -> Collection[str]:
        self.started.set()
        await self.may_go_on.wait()
        if self.broken:
            raise StoreUnavailable("broken")
        if self.has_bug:
            self.has_bug = False
            raise ZeroDivisionError
        if any(row.serial_number in self.refused for row in rows):
            raise RowRefused
        self.batches.append(list(rows))
        return self.outrun

    @property
    def kept(self) -> set[str]:
        return {row.serial_number for batch in self.batches for row in batch}


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_nobody_is_released_before_the_commit():
    disk = Disk()
    disk.may_go_on.clear()
    recorder = Recorder(disk.commit)
    caller = asyncio.create_task(recorder.record(record_row()))
    await disk.started.wait()
    await _settle()
    assert not caller.done()
    disk.may_go_on.set()
    await caller
    await recorder.close()


async def test_what_arrives_during_a_commit_shares_the_next_one():
    disk = Disk()
    disk.may_go_on.clear()
    recorder = Recorder(disk.commit)
    first = asyncio.create_task(recorder.record(record_row()))
    await disk.started.wait()
    others = [asyncio.create_task(recorder.record(record_row())) for _ in range(40)]
    await _settle()
    disk.may_go_on.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in disk.batches] == [1, 40]
    await recorder.close()


async def test_a_refused_row_fails_alone():
    disk = Disk()
    recorder = Recorder(disk.commit)
    rows = [record_row() for _ in range(37)]
    disk.refused = {rows[11].serial_number, rows[12].serial_number}
    outcomes = await asyncio.gather(*map(recorder.record, rows), return_exceptions=True)
    failed = [index for index, outcome in enumerate(outcomes) if outcome is not True]
    assert failed == [11, 12]
    assert isinstance(outcomes[11], StoreUnavailable)
    assert outcomes[11].reason == "RECORD_REFUSED"
    assert len(disk.kept) == 35
    await recorder.close()


async def test_a_broken_disk_fails_the_batch_once_and_the_next_is_tried_afresh():
    disk = Disk()
    recorder = Recorder(disk.commit)
    disk.broken = True
    outcomes = await asyncio.gather(
        *(recorder.record(record_row()) for _ in range(5)), return_exceptions=True
    )
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    assert len({id(outcome) for outcome in outcomes}) == 5
    disk.broken = False
    await recorder.record(record_row())
    await recorder.close()


async def test_a_full_queue_turns_rows_away():
    disk = Disk()
    disk.may_go_on.clear()
    recorder = Recorder(disk.commit, max_waiting=3)
    taken = [asyncio.create_task(recorder.record(record_row()))]
    await disk.started.wait()
    taken += [asyncio.create_task(recorder.record(record_row())) for _ in range(3)]
    await _settle()
    assert recorder.waiting == 3
    with pytest.raises(Overloaded) as refusal:
        await recorder.record(record_row())
    assert refusal.value.retry_after
    disk.may_go_on.set()
    await asyncio.gather(*taken)
    await recorder.close()


async def test_a_cancelled_caller_leaves_the_queue_and_harms_nobody():
    disk = Disk()
    disk.may_go_on.clear()
    recorder = Recorder(disk.commit)
    in_flight_row, waiting_row, last_row = record_row(), record_row(), record_row()
    in_flight = asyncio.create_task(recorder.record(in_flight_row))
    await disk.started.wait()
    waiting = asyncio.create_task(recorder.record(waiting_row))
    last = asyncio.create_task(recorder.record(last_row))
    await _settle()
    in_flight.cancel()
    waiting.cancel()
    await asyncio.gather(in_flight, waiting, return_exceptions=True)
    disk.may_go_on.set()
    await last
    assert disk.kept == {in_flight_row.serial_number, last_row.serial_number}
    await recorder.close()


async def test_a_caller_does_not_wait_for_ever():
    disk = Disk()
    disk.may_go_on.clear()
    recorder = Recorder(disk.commit, time_limit=0.05)
    committed = asyncio.create_task(recorder.record(record_row()))
    await disk.started.wait()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await recorder.record(record_row())
    with pytest.raises(StoreUnavailable):
        await committed
    disk.may_go_on.set()
    await recorder.close()
    assert [len(batch) for batch in disk.batches] == [1]


async def test_one_that_waits_too_long_takes_no_later_one_along():
    disk = Disk()
    disk.may_go_on.clear()
    recorder = Recorder(disk.commit, time_limit=0.2)
    first = asyncio.create_task(recorder.record(record_row()))
    await asyncio.sleep(0.1)
    second = asyncio.create_task(recorder.record(record_row()))
    with pytest.raises(StoreUnavailable):
        await first
    assert not second.done()
    disk.may_go_on.set()
    await second
    await recorder.close()


async def test_close_commits_what_waits_and_refuses_what_comes_later():
    disk = Disk()
    disk.may_go_on.clear()
    recorder = Recorder(disk.commit, max_batch=4)
    callers = [asyncio.create_task(recorder.record(record_row())) for _ in range(10)]
    await disk.started.wait()
    closing = asyncio.create_task(recorder.close())
    await _settle()
    with pytest.raises(StoreUnavailable):
        await recorder.record(record_row())
    disk.may_go_on.set()
    await closing
    await asyncio.gather(*callers)
    assert len(disk.kept) == 10


@pytest.mark.parametrize("is_closing", [False, True])
async def test_a_commit_that_meets_a_bug_leaves_nobody_waiting(is_closing: bool):
    bugs: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    disk = Disk()
    disk.may_go_on.clear()
    disk.has_bug = True
    recorder = Recorder(disk.commit)
    first = asyncio.create_task(recorder.record(record_row()))
    await disk.started.wait()
    behind = asyncio.create_task(recorder.record(record_row()))
    await _settle()
    closing = [asyncio.create_task(recorder.close())] if is_closing else []
    await _settle()
    disk.may_go_on.set()
    with pytest.raises(StoreUnavailable):
        await first
    async with asyncio.timeout(10):
        assert await behind
        await asyncio.gather(*closing)
    assert len(disk.kept) == 1
    assert [type(bug["exception"]) for bug in bugs] == [ZeroDivisionError]
    await recorder.close()
