"""The queue in front of the signing threads: bounded, timed, and never silently stuck."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
from meshmint_server.errors import KeyUnavailable, Overloaded
from meshmint_server.keys import KeyFault
from meshmint_server.keys.signer import Signer


class Gate:
    """A call that blocks until told, as an HSM that does not answer."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.entered.set()
        assert self.go_on.wait(30)
        return "late"


@pytest.fixture
def signer() -> Iterator[Signer]:
    signer = Signer("test", queue_size=4)
    yield signer
    assert signer.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go_on.set()


async def block(signer: Signer, gate: Gate, patience: float = 20) -> asyncio.Task[str]:
    task = asyncio.create_task(signer.run(gate, timeout=patience))
    await asyncio.to_thread(gate.entered.wait, 5)
    return task


async def test_results_and_errors_come_back_to_the_one_who_asked(signer: Signer) -> None:
    def refuse() -> None:
        raise KeyFault("no")

    assert await signer.run(lambda: 42, timeout=5) == 42
    with pytest.raises(KeyFault, match="no") as caught:
        await signer.run(refuse, timeout=5)
    # What the thread had on its stack stays there.
    assert caught.value.__context__ is None
    assert await signer.run(lambda: 43, timeout=5) == 43


async def test_a_bug_in_a_job_does_not_stop_the_thread(signer: Signer) -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        await signer.run(lambda: 1 // 0, timeout=5)
    assert await signer.run(lambda: 1, timeout=5) == 1


async def test_a_full_queue_refuses_at_once(signer: Signer, gate: Gate) -> None:
    blocked = await block(signer, gate)
    waiting = [asyncio.create_task(signer.run(lambda: 1, timeout=20)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await signer.run(lambda: 1, timeout=20)
    assert caught.value.retry_after
    assert signer.health().waiting == 4
    gate.go_on.set()
    assert await blocked == "late"
    assert await asyncio.gather(*waiting) == [1, 1, 1, 1]
    assert signer.health().waiting == 0


async def test_nobody_waits_past_the_deadline(signer: Signer, gate: Gate) -> None:
    with pytest.raises(KeyUnavailable, match=r"within 0\.1 seconds"):
        await signer.run(gate, timeout=0.1)


async def test_jobs_that_nobody_waits_for_are_not_done(signer: Signer, gate: Gate) -> None:
    done: list[str] = []
    blocked = await block(signer, gate)
    cancelled = asyncio.create_task(signer.run(lambda: done.append("cancelled"), timeout=20))
    late = asyncio.create_task(signer.run(lambda: done.append("late"), timeout=0.05))
    wanted = asyncio.create_task(signer.run(lambda: done.append("wanted"), timeout=20))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(KeyUnavailable):
        await late
    gate.go_on.set()
    await asyncio.gather(blocked, wanted)
    assert done == ["wanted"]
    assert cancelled.cancelled()


async def test_a_result_does_not_wait_for_the_batch_behind_it(signer: Signer, gate: Gate) -> None:
    blocked = await block(signer, gate)
    has_come = threading.Event()
    came_first: list[bool] = []
    quick = asyncio.create_task(signer.run(lambda: "quick", timeout=60))
    await asyncio.sleep(0)
    signer.post(lambda: came_first.append(has_come.wait(20)), timeout=60)
    quick.add_done_callback(lambda _: has_come.set())
    gate.go_on.set()
    assert await quick == "quick"
    assert await blocked == "late"
    assert await signer.run(lambda: came_first, timeout=60) == [True]


async def test_a_hanging_call_is_noticed_and_later_callers_do_not_wait_for_it(
    signer: Signer, gate: Gate
) -> None:
    blocked = await block(signer, gate, patience=0.05)
    assert not signer.is_stuck(10)
    await asyncio.sleep(0.1)
    assert signer.is_stuck(0.05)
    health = signer.health(0.05)
    assert health.is_stuck
    assert health.busy_seconds > 0.05
    with pytest.raises(KeyUnavailable):
        await blocked
    gate.go_on.set()
    assert await signer.run(lambda: 1, timeout=5) == 1
    assert not signer.is_stuck(0.05)


async def test_a_call_that_was_given_more_time_is_not_taken_for_stuck(
    signer: Signer, gate: Gate
) -> None:
    blocked = await block(signer, gate, patience=20)
    await asyncio.sleep(0.1)
    assert not signer.is_stuck(0.05)
    gate.go_on.set()
    await blocked


def test_many_loops_share_one_signer(signer: Signer) -> None:
    async def work(number: int) -> list[int]:
        return [await signer.run(lambda: number, timeout=10) for _ in range(200)]

    results: dict[int, list[int]] = {}
    threads = [
        threading.Thread(target=lambda n=n: results.update({n: asyncio.run(work(n))}))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == {number: [number] * 200 for number in range(4)}


async def test_all_calls_run_on_one_thread_unless_more_were_asked_for() -> None:
    for threads in (1, 2):
        signer = Signer("count", threads=threads)
        barrier = threading.Barrier(threads)

        def meet(barrier: threading.Barrier = barrier) -> int:
            barrier.wait(10)
            return threading.get_ident()

        idents = await asyncio.gather(*(signer.run(meet, timeout=10) for _ in range(threads * 4)))
        assert len(set(idents)) == threads
        assert threading.get_ident() not in idents
        assert signer.close()


async def test_running_alone_waits_for_the_others() -> None:
    signer = Signer("alone", threads=2)
    gate = Gate()
    blocked = await block(signer, gate)
    assert await signer.run(lambda: signer.run_alone(lambda: 1, patience=0.05), timeout=5) is None
    gate.go_on.set()
    await blocked
    assert await signer.run(lambda: signer.run_alone(lambda: 1, patience=5), timeout=5) == 1
    assert signer.close()


async def test_what_waits_is_done_before_closing_and_nothing_is_taken_after(gate: Gate) -> None:
    signer = Signer("closing")
    ended: list[str] = []
    blocked = await block(signer, gate)
    waiting = asyncio.create_task(signer.run(lambda: ended.append("job"), timeout=20))
    await asyncio.sleep(0)
    closing = asyncio.create_task(
        asyncio.to_thread(signer.close, finally_run=lambda: ended.append("end"))
    )
    while not signer._is_closed:  # noqa: ASYNC110  set by another thread
        await asyncio.sleep(0.01)
    with pytest.raises(KeyUnavailable, match="stopped"):
        await signer.run(lambda: 1, timeout=5)
    gate.go_on.set()
    assert await closing
    await asyncio.gather(blocked, waiting)
    assert ended == ["job", "end"]


async def test_closing_does_not_wait_for_ever(gate: Gate) -> None:
    signer = Signer("stuck")
    blocked = await block(signer, gate)
    assert not await asyncio.to_thread(signer.close, 0.1)
    gate.go_on.set()
    await blocked
    assert signer.close()
