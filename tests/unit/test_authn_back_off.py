"""When a verifier that throttles or fails is asked again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from meshmint_server.authn.back_off import BackOff
from meshmint_server.authn.clock import Clock

TRIAL = 10.0


@dataclass
class Hands:
    """A clock that stands until a test turns it."""

    time: float = 100.0

    def back_off(self) -> BackOff:
        return BackOff(trial=TRIAL, clock=Clock(monotonic=lambda: self.time))


@pytest.fixture
def hands() -> Hands:
    return Hands()


def fail(back_off: BackOff, times: int = 1) -> None:
    for _ in range(times):
        back_off.failed(back_off.begin())


def test_failures_with_answers_between_them_pause_nothing(hands: Hands) -> None:
    back_off = hands.back_off()
    for _ in range(5):
        fail(back_off, 2)
        back_off.succeeded(back_off.begin())
    assert back_off.wait() <= 0


def test_the_third_failure_in_a_row_pauses(hands: Hands) -> None:
    back_off = hands.back_off()
    fail(back_off, 2)
    assert back_off.wait() <= 0
    fail(back_off)
    assert back_off.wait() == 1


def test_requests_that_were_under_way_at_a_pause_do_not_lengthen_it(hands: Hands) -> None:
    back_off = hands.back_off()
    rounds = [back_off.begin() for _ in range(16)]
    for round_ in rounds:
        back_off.failed(round_)
    assert back_off.wait() == 1


def test_after_a_pause_one_request_is_let_through_and_its_failure_doubles_the_pause(
    hands: Hands,
) -> None:
    back_off = hands.back_off()
    fail(back_off, 3)
    pauses = []
    for _ in range(5):
        pauses.append(back_off.wait())
        hands.time += back_off.wait()
        assert back_off.wait() <= 0
        trial = back_off.begin()
        assert back_off.wait() == 1, "the others come back after a moment"
        hands.time += TRIAL / 2
        assert back_off.wait() == 1
        back_off.failed(trial)
    assert pauses == [1, 2, 4, 5, 5]


def test_a_trial_that_never_ends_holds_nobody_back_for_longer_than_it_may_take(
    hands: Hands,
) -> None:
    back_off = hands.back_off()
    fail(back_off, 3)
    hands.time += 1
    back_off.begin()
    hands.time += TRIAL
    assert back_off.wait() <= 0


def test_a_trial_that_succeeds_ends_it_all(hands: Hands) -> None:
    back_off = hands.back_off()
    fail(back_off, 3)
    hands.time += 1
    back_off.succeeded(back_off.begin())
    assert back_off.wait() <= 0
    fail(back_off, 2)
    assert back_off.wait() <= 0
    fail(back_off)
    assert back_off.wait() == 1


def test_what_the_service_asks_for_it_gets_at_once(hands: Hands) -> None:
    back_off = hands.back_off()
    back_off.failed(back_off.begin(), pause=7)
    assert back_off.wait() == 7
    hands.time += 7
    back_off.failed(back_off.begin(), pause=3)
    assert back_off.wait() == 3


def test_an_answer_from_before_a_pause_does_not_end_it(hands: Hands) -> None:
    back_off = hands.back_off()
    early, throttled, late = (back_off.begin() for _ in range(3))
    back_off.failed(throttled, pause=7)
    back_off.succeeded(early)
    assert back_off.wait() == 7
    back_off.failed(late, pause=2)
    assert back_off.wait() == 7
    back_off.failed(late, pause=9)
    assert back_off.wait() == 9


def test_a_failure_after_a_throttling_is_tolerated_as_any_other(hands: Hands) -> None:
    back_off = hands.back_off()
    back_off.failed(back_off.begin(), pause=7)
    hands.time += 7
    fail(back_off)
    assert back_off.wait() <= 0
