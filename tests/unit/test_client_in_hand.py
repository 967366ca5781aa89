"""The requests of a call for many, under a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest
from meshmint import (
    AnswerRefused,
    DeadlineExceeded,
    InternalError,
    MeshmintError,
    Outcome,
    RetryPolicy,
    SignRequest,
    Unauthenticated,
    Unavailable,
)
from meshmint.in_hand import MOST_IN_HAND, InHand
from meshmint.operations import Operation
from meshmint.retry import Attempts
from meshmint.stream_operations import SIGN_MANY
from meshmint.v1 import certificate_service_pb2 as pb


class Hand:
    """What is in hand, with a clock for its deadlines."""

    def __init__(self, max_attempts: int = 3) -> None:
        self.now = 0.0
        self._policy = RetryPolicy(max_attempts=max_attempts, initial_delay=0, max_delay=0)
        self.held = InHand(SIGN_MANY, self._attempts)

    def _attempts(self, operation: Operation[Any]) -> Attempts:
        timeout = 10 if operation.timeout is None else operation.timeout
        return Attempts(self._policy, timeout, clock=lambda: self.now)

    def add(self, role: str = "", timeout: float | None = None) -> None:
        self.held.add(self.held.prepared(SignRequest("a CSR", role, timeout=timeout)))

    def send(self) -> list[str]:
        """Sends what is due, and gives the ids of it."""
        message = self.held.message()
        return [] if message is None else [item.id for item in message.items]

    def answer(self, *ids: str) -> None:
        answer = pb.SignStreamResponse()
        for name in ids:
            answer.items.add(id=name).response.role = "answered"
        self.held.received(answer.SerializeToString())

    def outcomes(self) -> list[Outcome[Any, Any]]:
        found = []
        while (answered := self.held.next_answered()) is not None:
            found.append(answered())
        return found

    def failures(self) -> list[tuple[str, type[MeshmintError]]]:
        return [(one.request.role, type(one.error)) for one in self.outcomes()]


def test_each_request_has_a_deadline_of_its_own_and_a_late_answer_is_thrown_away() -> None:
    hand = Hand()
    hand.add("short", timeout=5)
    hand.add("long")
    short, long = hand.send()
    assert hand.held.until_deadline() == 5
    hand.now = 5
    assert hand.held.expire()
    assert not hand.held.expire()
    assert hand.failures() == [("short", DeadlineExceeded)]
    assert hand.held.until_deadline() == 5
    assert not hand.held.is_given_up()
    hand.answer(short, long)
    # What this server answered is no certificate.
    assert hand.failures() == [("long", AnswerRefused)]
    assert hand.held.is_empty()


def test_what_is_late_before_it_was_sent_is_not_sent() -> None:
    hand = Hand()
    hand.add("late")
    hand.now = 10
    assert hand.held.expire()
    assert hand.send() == []
    assert hand.failures() == [("late", DeadlineExceeded)]
    assert hand.held.is_empty()


def test_a_stream_that_owes_only_late_answers_is_given_up() -> None:
    hand = Hand()
    hand.add("late", timeout=1)
    assert not hand.held.is_given_up()
    hand.send()
    hand.now = 1
    hand.held.expire()
    assert hand.held.is_given_up()
    hand.held.broke(Unavailable("left"))
    assert not hand.held.is_given_up()
    assert hand.failures() == [("late", DeadlineExceeded)]
    assert hand.send() == []


def test_there_is_room_until_so_many_are_in_hand_in_whatever_state() -> None:
    hand = Hand()
    for number in range(MOST_IN_HAND):
        assert hand.held.has_room()
        hand.add(timeout=1 if number < 100 else None)
        if number == 50:
            assert len(hand.send()) == 51
    hand.now = 1
    hand.held.expire()
    assert not hand.held.has_room()
    assert len(hand.outcomes()) == 100
    # The server may still be at work on the 51 that were sent.
    for _ in range(49):
        assert hand.held.has_room()
        hand.add()
    assert not hand.held.has_room()


def test_a_stream_that_owes_nothing_may_end_as_it_likes() -> None:
    hand = Hand(max_attempts=1)
    hand.held.broke(InternalError("a bug"))
    hand.add()
    hand.answer(*hand.send())
    hand.held.broke(Unauthenticated("expired"))
    assert len(hand.outcomes()) == 1


def test_a_stream_that_broke_is_an_attempt_of_what_it_left_alone() -> None:
    hand = Hand(max_attempts=2)
    hand.add("left")
    first = hand.send()
    hand.add("not sent")
    hand.held.broke(Unavailable("again"))
    second = hand.send()
    assert len(second) == 2
    assert not set(first) & set(second)
    hand.held.broke(Unavailable("again"))
    assert hand.failures() == [("left", Unavailable)]
    assert len(hand.send()) == 1


def test_a_token_counts_as_outlived_only_on_a_stream_that_has_answered() -> None:
    hand = Hand()
    for _ in range(2):
        hand.add()
    first, _ = hand.send()
    hand.answer(first)
    hand.held.broke(Unauthenticated("expired"))
    assert len(hand.send()) == 1
    with pytest.raises(Unauthenticated):
        hand.held.broke(Unauthenticated("expired"))


def test_after_a_break_nothing_is_sent_before_the_server_wants_it() -> None:
    hand = Hand()
    hand.add("left", timeout=1000)
    hand.send()
    hand.add("not sent", timeout=1000)
    hand.held.broke(Unavailable("later", retry_after=100))
    hand.add("new")
    assert hand.send() == []
    pause = hand.held.until_due()
    assert pause is not None
    assert pause > 90
