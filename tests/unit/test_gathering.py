"""Whoever is alone waits for nobody; under load many go together, and nobody for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from meshmint_server.keys.gathering import Gathering


class Loop:
    """An event loop whose turns take as long as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.turn = 0.0
        self._soon: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._later: list[tuple[float, Handle, Callable[[], None]]] = []
        monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)

    def call_soon(self, call: Callable[..., None], *arguments: Any) -> None:
        self._soon.append((call, arguments))

    def call_later(self, delay: float, call: Callable[[], None]) -> Handle:
        handle = Handle()
        self._later.append((self.now + delay, handle, call))
        return handle

    def run(self, seconds: float) -> None:
        """Turns until so much time is over, or there is nothing to do."""
        ends = self.now + seconds
        while self.now < ends and (self._soon or self._later):
            if not self._soon:
                self.now = max(self.now, min(at for at, _, _ in self._later))
            else:
                self.now += self.turn
            soon, self._soon = self._soon, []
            for call, arguments in soon:
                call(*arguments)
            due = [one for one in self._later if one[0] <= self.now]
            self._later = [one for one in self._later if one[0] > self.now]
            for _, handle, later in due:
                if not handle.is_cancelled:
                    later()


class Handle:
    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


class Sender:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.sent: list[float] = []
        self.gathering = Gathering(self._send, clock=lambda: loop.now)

    def _send(self) -> None:
        self.sent.append(self._loop.now)

    def make_busy(self) -> None:
        """Enough slow turns that they are the usual."""
        self._loop.turn = 0.001
        while not self.gathering.is_on:
            self.gathering.begin()
            self._loop.run(0.000_5)
        self.sent.clear()


def test_with_an_idle_loop_each_goes_at_its_next_turn(loop: Loop) -> None:
    sender = Sender(loop)
    loop.turn = 0.000_01
    for number in range(1, 100):
        sender.gathering.begin()
        loop.run(0.000_01)
        assert len(sender.sent) == number
        assert not sender.gathering.is_on


def test_one_slow_turn_makes_no_busy_loop(loop: Loop) -> None:
    sender = Sender(loop)
    loop.turn = 0.002
    sender.gathering.begin()
    loop.run(0.002)
    assert sender.sent == [0.002]


def test_with_a_busy_loop_it_goes_after_the_longest_time(loop: Loop) -> None:
    sender = Sender(loop)
    sender.make_busy()
    began = loop.now
    loop.run(0.019)
    assert sender.sent == []
    loop.run(1)
    assert len(sender.sent) == 1
    assert 0.02 <= sender.sent[0] - began < 0.024
    assert not sender.gathering.is_on


def test_when_the_loop_has_nothing_else_to_do_it_goes(loop: Loop) -> None:
    sender = Sender(loop)
    sender.make_busy()
    began = loop.now
    loop.turn = 0.000_01
    loop.run(1)
    assert len(sender.sent) == 1
    assert sender.sent[0] - began < 0.005


def test_enough_goes_at_once_and_only_once(loop: Loop) -> None:
    sender = Sender(loop)
    sender.make_busy()
    sender.gathering.end()
    assert len(sender.sent) == 1
    loop.run(1)
    assert len(sender.sent) == 1
