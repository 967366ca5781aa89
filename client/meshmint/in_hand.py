"""The requests of a call for many that are taken and not yet given back with an outcome.

Each has deadline, attempts and pauses of its own, as a single call has; a stream that
breaks is one failed attempt of every request that it left without an answer. Nothing in
here does I/O or waits, and nothing grows with the number of requests.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from meshmint.errors import (
    AnswerRefused,
    DeadlineExceeded,
    MeshmintError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    error_from_status,
)
from meshmint.operations import Operation
from meshmint.results import Outcome
from meshmint.retry import Attempts, is_temporary
from meshmint.stream_operations import StreamOperation

__all__ = ["InHand", "Item"]

Request = TypeVar("Request")
Result = TypeVar("Result")

# As many as the service works on for one stream, and takes in one message.
MOST_IN_HAND = 256
# The service takes no larger message.
_MOST_BYTES = 1024 * 1024
# What an item has beside its request, at most: its id, two tags and two lengths.
_BYTES_BESIDE = 32


@dataclass(slots=True, eq=False)
class Item(Generic[Request, Result]):
    """One request.

    Attributes:
        request: What was given.
        operation: The single call for it; its message is the same at every attempt.
        attempts: Its attempts, under its deadline.
        due: When it may be sent, on the monotonic clock.
        is_over: It has its outcome, though an answer may still come.
    """

    request: Request
    operation: Operation[Result]
    attempts: Attempts
    due: float = 0.0
    is_over: bool = False

    def outcome(self, answer: Message | MeshmintError) -> Outcome[Request, Result]:
        """What the answer comes to, checked."""
        if isinstance(answer, MeshmintError):
            return Outcome(self.request, answer)
        try:
            return Outcome(self.request, self.operation.result(answer))
        except MeshmintError as refused:
            return Outcome(self.request, refused)


class InHand(Generic[Request, Result]):
    """What one call for many has in hand.

    Args:
        operation: The call.
        attempts: Begins the attempts of a single call.
    """

    def __init__(
        self,
        operation: StreamOperation[Request, Result],
        attempts: Callable[[Operation[Result]], Attempts],
    ) -> None:
        self._operation = operation
        self._attempts = attempts
        self._waiting: list[Item[Request, Result]] = []
        self._sent: dict[str, Item[Request, Result]] = {}
        # An outcome is made, and its certificate checked, by whoever asks for it.
        self._answered: deque[Callable[[], Outcome[Request, Result]]] = deque()
        # An id is for one sending, so that an answer that comes twice finds nothing.
        self._ids = itertools.count(1)
        self._has_received = False
        self._paused_until = 0.0

    def is_empty(self) -> bool:
        """Whether all that was added has been given back."""
        return not (self._answered or self._waiting or self._has_unanswered())

    def has_room(self) -> bool:
        """Whether another one may be taken."""
        return len(self._answered) + len(self._waiting) + len(self._sent) < MOST_IN_HAND

    def prepared(self, request: Request) -> Item[Request, Result] | Outcome[Request, Result]:
        """Makes the message, with key and CSR where that is asked for; changes nothing here."""
        try:
            operation = self._operation.single(request)
            attempts = self._attempts(operation)
            if (size := _size(operation.request)) > _MOST_BYTES:
                # Sent with others it would take them along.
                raise ResourceExhausted(
                    f"the request has {size} bytes, and the service takes at most {_MOST_BYTES}"
                )
        except MeshmintError as error:
            return Outcome(request, error)
        return Item(request, operation, attempts)

    def add(self, prepared: Item[Request, Result] | Outcome[Request, Result]) -> None:
        """Takes a request, or what came of it already."""
        if isinstance(prepared, Outcome):
            self._answered.append(lambda: prepared)
        else:
            self._waiting.append(prepared)

    def next_answered(self) -> Callable[[], Outcome[Request, Result]] | None:
        """Gives one back: a function that makes its outcome. None: there is none."""
        return self._answered.popleft() if self._answered else None

    def until_due(self) -> float | None:
        """Seconds until something may be sent, 0 if that is now; None: nothing waits."""
        if not self._waiting:
            return None
        due = min(item.due for item in self._waiting)
        return max(0.0, max(due, self._paused_until) - time.monotonic())

    def message(self) -> Any | None:
        """What is to be sent now, as much as fits into one message; None: nothing.

        All of it counts as sent from then on.
        """
        now = time.monotonic()
        if now < self._paused_until:
            return None
        message, size = self._operation.message(), 0
        later = []
        for item in self._waiting:
            size += _size(item.operation.request) if item.due <= now else 0
            if item.due > now or size > _MOST_BYTES:
                later.append(item)
                continue
            name = str(next(self._ids))
            message.items.add(id=name, request=item.operation.request)
            self._sent[name] = item
        self._waiting = later
        return message if message.items else None

    def received(self, answer: bytes) -> None:
        """Takes in a message of the stream.

        Raises:
            AnswerRefused: It is no such message, or answers what was not asked.
        """
        try:
            message = self._operation.answer(answer)
        except DecodeError as error:
            raise AnswerRefused("the answer is not the message that this call returns") from error
        for answered in message.items:
            item = self._sent.pop(answered.id, None)
            if item is None:
                raise AnswerRefused(
                    "the answer has the id of no request, or of one that was answered already"
                )
            self._has_received = True
            if item.is_over:
                continue
            match answered.WhichOneof("outcome"):
                case "response":
                    self._answered.append(partial(item.outcome, answered.response))
                case "error":
                    self._failed(item, error_from_status(answered.error))
                case _:
                    self._give_back(item, AnswerRefused("the answer holds no certificate"))

    def broke(self, error: MeshmintError) -> None:
        """The stream has ended: what has no answer is tried again, or fails with it.

        Raises:
            MeshmintError: The error, if there are requests without an answer that another
                stream would not get one for either.
        """
        unanswered = [item for item in self._sent.values() if not item.is_over]
        self._sent.clear()
        if isinstance(error, Unauthenticated) and self._has_received:
            # The stream has outlived its token, and the next one gets another.
            error = Unavailable(error.message, code=error.code, reason=error.reason)
        self._has_received = False
        if not unanswered:
            return
        if not is_temporary(error):
            raise error
        tried = len(self._waiting)
        for item in unanswered:
            self._failed(item, error)
        # What was not sent yet waits as well.
        self._paused_until = min((item.due for item in self._waiting[tried:]), default=0.0)

    def expire(self) -> bool:
        """Ends the requests that are past their deadline; whether there were any."""
        late = [item for item in self._unanswered() if item.attempts.is_over()]
        for item in late:
            self._give_back(item, DeadlineExceeded("there was no answer within the time-out"))
        self._waiting = [item for item in self._waiting if not item.is_over]
        return bool(late)

    def until_deadline(self) -> float | None:
        """Seconds until the next deadline; None: there is none."""
        return min((item.attempts.left() for item in self._unanswered()), default=None)

    def is_given_up(self) -> bool:
        """Whether the stream owes answers, and only such that nobody waits for any more."""
        return bool(self._sent) and not self._has_unanswered()

    def _has_unanswered(self) -> bool:
        return any(not item.is_over for item in self._sent.values())

    def _unanswered(self) -> list[Item[Request, Result]]:
        return [*self._waiting, *(item for item in self._sent.values() if not item.is_over)]

    def _failed(self, item: Item[Request, Result], error: MeshmintError) -> None:
        pause = item.attempts.pause_after(error)
        if pause is None:
            self._give_back(item, error)
        else:
            item.due = time.monotonic() + pause
            self._waiting.append(item)

    def _give_back(self, item: Item[Request, Result], error: MeshmintError) -> None:
        item.is_over = True
        self._answered.append(partial(item.outcome, error))


def _size(request: Message) -> int:
    return request.ByteSize() + _BYTES_BESIDE
