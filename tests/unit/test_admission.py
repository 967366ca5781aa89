"""The door: how many are worked for, who waits, whose turn it is, who is turned away."""

from __future__ import annotations

import asyncio
import random

import pytest
from meshmint_server.config.admission import AdmissionSettings, RateSettings
from meshmint_server.errors import DeadlineTooShort, Overloaded
from meshmint_server.issuance import Admission, Deadline, Rate, Rates
from meshmint_server.policy import Caller, CallerMatcher, Glob
from pydantic import ValidationError
from support.policy import make_caller

CART, PAY, SHIP = (make_caller(service_account=name) for name in ("cart", "pay", "ship"))


class Visitor:
    """A request that stays until it is let go."""

    def __init__(self, admission: Admission, caller: Caller, log: list[Visitor]) -> None:
        self.caller = caller
        self.go = asyncio.Event()
        self.task = asyncio.create_task(self._visit(admission, log))

    async def _visit(self, admission: Admission, log: list[Visitor]) -> None:
        async with admission.enter(self.caller, "role", Deadline.after(60)):
            log.append(self)
            await self.go.wait()


class Hall:
    """An admission with visitors."""

    def __init__(self, working: int, waiting: int) -> None:
        self.admission = Admission(working=working, waiting=waiting)
        self.entered: list[Visitor] = []

    async def visit(self, caller: Caller) -> Visitor:
        visitor = Visitor(self.admission, caller, self.entered)
        await settle()
        return visitor


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_as_many_as_configured_work_and_the_next_waits_for_one_to_leave() -> None:
    hall = Hall(2, 10)
    visitors = [await hall.visit(CART) for _ in range(3)]
    assert hall.entered == visitors[:2]
    assert (hall.admission.working, hall.admission.waiting) == (2, 1)
    visitors[0].go.set()
    await settle()
    assert hall.entered == visitors
    for visitor in visitors:
        visitor.go.set()
    await settle()
    assert (hall.admission.working, hall.admission.waiting) == (0, 0)


async def test_callers_take_turns_whoever_came_with_many_requests_first() -> None:
    hall = Hall(1, 100)
    first = await hall.visit(SHIP)
    many = [await hall.visit(CART) for _ in range(4)]
    late = [await hall.visit(PAY) for _ in range(2)]
    first.go.set()
    for visitor in (*many, *late):
        visitor.go.set()
    await asyncio.gather(*(one.task for one in (first, *many, *late)))
    order = [many[0], late[0], many[1], late[1], many[2], many[3]]
    assert hall.entered[1:] == order


async def test_when_full_the_caller_with_most_requests_loses_its_newest() -> None:
    hall = Hall(1, 4)
    working = await hall.visit(SHIP)
    crowd = [await hall.visit(CART) for _ in range(4)]
    one_more = await hall.visit(CART)
    with pytest.raises(Overloaded) as caught:
        await one_more.task
    assert caught.value.retry_after is not None
    other = await hall.visit(PAY)
    with pytest.raises(Overloaded):
        await crowd[-1].task
    third = await hall.visit(PAY)
    with pytest.raises(Overloaded):
        await crowd[-2].task
    # Two each: nobody has more than the newcomer would have.
    with pytest.raises(Overloaded):
        await (await hall.visit(PAY)).task
    for visitor in (working, crowd[0], other, crowd[1], third):
        visitor.go.set()
        await visitor.task
    assert hall.admission.working == 0


async def test_nothing_waits_where_nothing_may() -> None:
    hall = Hall(1, 0)
    working = await hall.visit(CART)
    with pytest.raises(Overloaded):
        await (await hall.visit(PAY)).task
    working.go.set()
    await working.task
    assert (await hall.visit(PAY)) in hall.entered


async def test_a_turn_that_does_not_come_in_time_is_given_up() -> None:
    admission = Admission(working=1, waiting=10)
    async with admission.enter(CART, "role", Deadline.after(60)):
        with pytest.raises(DeadlineTooShort):
            async with admission.enter(PAY, "role", Deadline.after(0.01)):
                pytest.fail("it has no turn")
        assert (admission.working, admission.waiting) == (1, 0)
    assert admission.working == 0


async def test_a_turn_that_comes_while_its_client_leaves_goes_to_the_next() -> None:
    hall = Hall(1, 10)
    first, leaving, next_one = [await hall.visit(one) for one in (CART, PAY, SHIP)]
    first.go.set()
    await first.task
    # Its turn has come, and it has not noticed yet.
    leaving.task.cancel()
    await settle()
    assert hall.entered[-1] is next_one
    assert (hall.admission.working, hall.admission.waiting) == (1, 0)


async def test_a_failure_inside_ends_the_turn() -> None:
    admission = Admission(working=1)
    with pytest.raises(KeyError):
        async with admission.enter(CART, "role", Deadline.after(60)):
            raise KeyError
    assert admission.working == 0


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_counts_stay_true_and_everybody_is_served_or_told(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  a test's dice
    hall = Hall(chance.randint(1, 4), chance.randint(0, 6))
    callers = [make_caller(service_account=str(n)) for n in range(4)]
    visitors: list[Visitor] = []
    for _ in range(300):
        match chance.randint(0, 3):
            case 0 | 1:
                visitors.append(await hall.visit(chance.choice(callers)))
            case 2 if visitors:
                chance.choice(visitors).go.set()
            case 3 if visitors:
                chance.choice(visitors).task.cancel()
        if chance.random() < 0.5:
            await settle()
            live = [one for one in visitors if not one.task.done()]
            inside = [one for one in live if one in hall.entered]
            assert hall.admission.working == len(inside) <= hall.admission._most_working
            assert hall.admission.waiting == len(live) - len(inside)
            assert hall.admission.waiting <= hall.admission._most_waiting
            if hall.admission.waiting:
                assert len(inside) == hall.admission._most_working
    for one in visitors:
        one.go.set()
    outcomes = await asyncio.gather(*(one.task for one in visitors), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {
        type(None), Overloaded, asyncio.CancelledError,
    }  # fmt: skip
    assert (hall.admission.working, hall.admission.waiting) == (0, 0)
    assert not hall.admission._turns
    assert not hall.admission._by_length


# Rates


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rate(per: str = "caller", **fields: object) -> Rate:
    return Rate(
        **{"callers": (), "roles": (), "per": per, "rate": 2.0, "burst": 3.0, **fields}  # type: ignore[arg-type]
    )


def test_a_burst_is_granted_and_then_the_rate() -> None:
    clock = Clock()
    rates = Rates([rate()], clock=clock)
    assert [rates.take(CART, "r") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.5
    assert [rates.take(CART, "r") for _ in range(2)] == [0, 0.5]
    clock.now += 3600
    assert [rates.take(CART, "r") > 0 for _ in range(4)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("per", "spared"),
    [("caller", {(PAY, "r")}), ("role", {(CART, "other")}), ("all", set())],
    ids=str,
)
def test_a_rate_is_each_caller_s_each_role_s_or_everybody_s(
    per: str, spared: set[tuple[Caller, str]]
) -> None:
    rates = Rates([rate(per, burst=1.0)], clock=Clock())
    assert rates.take(CART, "r") == 0
    assert rates.take(CART, "r") > 0
    for caller, role in ((PAY, "r"), (CART, "other")):
        assert (rates.take(caller, role) == 0) is ((caller, role) in spared)


def test_a_rate_covers_whom_it_names_and_a_refusal_by_one_costs_nothing_of_another() -> None:
    clock = Clock()
    of_cart = rate(
        callers=(CallerMatcher(service_account="cart"),), roles=(Glob("web-*"),), burst=1
    )
    rates = Rates([rate(burst=3), of_cart], clock=clock)
    assert rates.take(CART, "web-1") == 0
    assert rates.take(CART, "web-1") > 0
    assert [rates.take(CART, "db") for _ in range(3)] == [0, 0, 0.5]
    assert [rates.take(PAY, "web-1") for _ in range(3)] == [0, 0, 0]


def test_only_so_many_buckets_are_kept() -> None:
    rates = Rates([rate()], most=5, clock=Clock())
    for number in range(100):
        rates.take(make_caller(service_account=str(number)), "r")
    assert len(rates._buckets) == 5


async def test_too_often_is_refused_with_the_time_to_come_back() -> None:
    admission = Admission(rates=Rates([rate(burst=1.0)], clock=Clock()))
    async with admission.enter(CART, "r", Deadline.after(60)):
        pass
    with pytest.raises(Overloaded) as caught:
        await admission.take(CART, "r", Deadline.after(60))
    assert caught.value.reason == "RATE_LIMITED"
    assert caught.value.retry_after == 0.5


def test_a_worker_has_its_share_of_a_rate() -> None:
    settings = RateSettings(rate=10)
    assert settings.build(4).rate == 2.5
    assert settings.build(4).burst == 2.5
    assert settings.build(100).burst == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"working": 0},
        {"waiting": -1},
        {"rates": [{"rate": 0}]},
        {"rates": [{"rate": 1, "burst": 0.5}]},
        {"rates": [{"rate": 1, "per": "day"}]},
        {"rates": [{"rate": 1, "roles": [""]}]},
        {"rates": [{"rate": 1, "callers": [{"subject": ""}]}]},
        {"rates": [{}]},
    ],
    ids=str,
)
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AdmissionSettings.model_validate(wrong)
