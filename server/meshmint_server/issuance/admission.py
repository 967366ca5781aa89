"""Who is worked for now, who waits, and who is turned away.

So many requests are worked on at a time, and so many wait; beyond that a request is
refused at once, which costs little and says when to come back. Callers take turns, and
when nothing more can wait it is the caller with the most requests waiting who loses
its newest, so that nobody can crowd the others out.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from types import TracebackType

from meshmint_server import telemetry
from meshmint_server.errors import Overloaded
from meshmint_server.issuance.deadline import Deadline
from meshmint_server.issuance.rates import Rates
from meshmint_server.policy import Caller

__all__ = ["Admission", "Entry"]

_Key = tuple[str, str]
_Turn = asyncio.Future[None]

_ADMITTED = telemetry.ADMISSIONS.labels("admitted").inc
_QUEUED = telemetry.ADMISSIONS.labels("queued").inc
_TURNED_AWAY = telemetry.ADMISSIONS.labels("turned_away").inc
_RATE_LIMITED = telemetry.ADMISSIONS.labels("rate_limited").inc


class Admission:
    """The door of one worker.

    Args:
        working: How many requests are worked on at a time.
        waiting: How many may wait for their turn.
        rates: How often callers and roles may ask at all.
    """

    def __init__(self, *, working: int = 256, waiting: int = 2048, rates: Rates | None = None):
        self._most_working = working
        self._most_waiting = waiting
        self._rates = rates
        self._working = 0
        self._waiting = 0
        # Callers in the order of their turns, each with its requests in the order they came.
        self._turns: OrderedDict[_Key, deque[_Turn]] = OrderedDict()
        # The same callers by how many requests they have waiting.
        self._by_length: dict[int, OrderedDict[_Key, None]] = {}
        self._longest = 0

    @property
    def working(self) -> int:
        """Requests that are worked on."""
        return self._working

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        return self._waiting

    def enter(self, caller: Caller, role: str, deadline: Deadline) -> Entry:
        """A context to work in, entered when it is the request's turn.

        Raises:
            Overloaded: On entering: nothing more can wait, or a rate is exceeded.
            DeadlineTooShort: On entering: the turn did not come in time.
        """
        return Entry(self, caller, role, deadline)

    async def take(self, caller: Caller, role: str, deadline: Deadline) -> None:
        """Waits for a turn; whoever got one calls `leave`."""
        if self._rates is not None and (delay := self._rates.take(caller, role)) > 0:
            _RATE_LIMITED()
            raise Overloaded(
                "This caller or role asks more often than it may. Slow down, and retry then.",
                reason="RATE_LIMITED",
                retry_after=delay,
            )
        if self._working < self._most_working and not self._waiting:
            self._working += 1
            _ADMITTED()
            return
        key = (caller.authenticator, caller.subject)
        if self._waiting >= self._most_waiting:
            self._make_room_for(key)
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._append(key, turn)
        _QUEUED()
        try:
            async with deadline.limit():
                await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                # The turn had come already: it goes to the next.
                self.leave()
            else:
                self._remove(key, turn)
            raise

    def leave(self) -> None:
        """Ends a turn, and gives it to the next request of the next caller."""
        while self._turns:
            key, requests = next(iter(self._turns.items()))
            turn = requests[0]
            self._shorten(key, requests, requests.popleft)
            if key in self._turns:
                self._turns.move_to_end(key)
            if not turn.done():
                turn.set_result(None)
                return
        self._working -= 1

    # The queue

    def _append(self, key: _Key, turn: _Turn) -> None:
        requests = self._turns.setdefault(key, deque())
        self._move(key, len(requests), len(requests) + 1)
        requests.append(turn)
        self._waiting += 1

    def _remove(self, key: _Key, turn: _Turn) -> None:
        requests = self._turns.get(key)
        if requests is not None and turn in requests:
            self._shorten(key, requests, lambda: requests.remove(turn))

    def _shorten(self, key: _Key, requests: deque[_Turn], take: Callable[[], object]) -> None:
        self._move(key, len(requests), len(requests) - 1)
        take()
        self._waiting -= 1
        if not requests:
            del self._turns[key]

    def _move(self, key: _Key, before: int, after: int) -> None:
        if before:
            same = self._by_length[before]
            del same[key]
            if not same:
                del self._by_length[before]
        if after:
            self._by_length.setdefault(after, OrderedDict())[key] = None
        if after > self._longest:
            self._longest = after
        elif before == self._longest and before not in self._by_length:
            # Shortened by one: nobody else has as many as it had.
            self._longest = after

    def _make_room_for(self, key: _Key) -> None:
        """Turns away whoever has most requests waiting: the newcomer, or somebody's newest."""
        own = len(self._turns.get(key, ()))
        _TURNED_AWAY()
        if own + 1 >= self._longest:
            raise _overloaded()
        crowding = next(iter(self._by_length[self._longest]))
        requests = self._turns[crowding]
        turn = requests[-1]
        self._shorten(crowding, requests, requests.pop)
        if not turn.done():
            turn.set_exception(_overloaded())


class Entry:
    """See `Admission.enter`."""

    __slots__ = ("_admission", "_caller", "_deadline", "_role")

    def __init__(self, admission: Admission, caller: Caller, role: str, deadline: Deadline) -> None:
        self._admission = admission
        self._caller = caller
        self._role = role
        self._deadline = deadline

    async def __aenter__(self) -> None:
        await self._admission.take(self._caller, self._role, self._deadline)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admission.leave()


def _overloaded() -> Overloaded:
    return Overloaded("Too many requests are waiting. Nothing was minted. Retry shortly.")
