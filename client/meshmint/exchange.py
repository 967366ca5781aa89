"""Running a call for many over streams: one after the other, until all is answered.

Three work at the same time: a thread that reads the requests, one of gRPC's that sends
them, and one that reads the answers; whoever iterates waits for outcomes. They meet in
what is in hand, which bounds how far the first is ahead of the last, and go when the
iteration ends. ``aio_exchange`` is the same for an event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import Message

from meshmint.errors import MeshmintError, Unavailable
from meshmint.in_hand import InHand
from meshmint.results import Outcome
from meshmint.settings import Settings
from meshmint.stream_operations import StreamOperation

__all__ = ["Exchange", "ended"]

Request = TypeVar("Request")
Result = TypeVar("Result")


class Exchange(Generic[Request, Result]):
    """One call for many; its threads share what is in hand under one condition.

    Args:
        operation: The call.
        settings: Those of the client.
        open_stream: Opens a stream, given its path, what to send, and the token.
    """

    def __init__(
        self,
        operation: StreamOperation[Request, Result],
        settings: Settings,
        open_stream: Callable[[str, Iterator[Message], str | None], Any],
    ) -> None:
        self._operation = operation
        self._settings = settings
        self._open_stream = open_stream
        self._hand = InHand(operation, settings.attempts)
        self._changed = threading.Condition()
        # Nobody sends or waits for anything on a stream that is not this one.
        self._stream: object = None
        self._call: Any = None
        self._has_all = False
        self._is_closed = False
        self._failure: BaseException | None = None
        self._source_failure: BaseException | None = None

    def outcomes(
        self, requests: Iterable[Request]
    ) -> Generator[Outcome[Request, Result], None, None]:
        """Yields each as it comes.

        Raises:
            MeshmintError: No stream can be had, and no other would fare better.
        """
        reading = threading.Thread(target=self._take, args=[requests], daemon=True)
        exchanging = threading.Thread(target=self._exchange, daemon=True)
        try:
            reading.start()
            exchanging.start()
            while (answered := self._next()) is not None:
                yield answered()
            # The server has nothing more to do than to end the stream.
            exchanging.join(self._settings.timeout)
            if self._failure is not None:
                raise self._failure
        finally:
            self.close(None)

    def close(self, failure: MeshmintError | None) -> None:
        """Ends everything; what has no outcome ends with the failure."""
        with self._changed:
            self._is_closed = True
            self._failure = self._failure or failure
            self._leave_stream()

    def _next(self) -> Callable[[], Outcome[Request, Result]] | None:
        with self._changed:
            while (answered := self._hand.next_answered()) is None:
                if self._failure is not None:
                    raise self._failure
                if self._is_done():
                    break
                if self._hand.expire():
                    continue
                if self._hand.is_given_up():
                    self._leave_stream()
                self._changed.wait(self._hand.until_deadline())
            self._changed.notify_all()  # there is room, or an end
        if answered is None and self._source_failure is not None:
            raise self._source_failure
        return answered

    def _take(self, requests: Iterable[Request]) -> None:
        """Reads the requests, the next one when there is room for it."""
        try:
            for request in requests:
                prepared = self._hand.prepared(request)
                with self._changed:
                    self._hand.add(prepared)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._is_closed or self._hand.has_room())
                    if self._is_closed:
                        return
        except BaseException as error:  # noqa: BLE001 - the iterable's own, told to who iterates
            self._source_failure = error
        with self._changed:
            self._has_all = True
            self._changed.notify_all()

    def _exchange(self) -> None:
        """Opens streams, one after the other, while something is to be sent."""
        try:
            while self._wait_until_due():
                error = self._converse()
                with self._changed:
                    self._hand.broke(error)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - told to who iterates
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _wait_until_due(self) -> bool:
        with self._changed:
            while not self._is_done():
                pause = self._hand.until_due()
                if pause == 0:
                    return True
                self._changed.wait(pause)
        return False

    def _converse(self) -> MeshmintError:
        """One stream: opens it, takes its answers in, and returns what ended it."""
        token = self._settings.tokens.get()
        stream = object()
        with self._changed:
            self._stream = stream
        call = self._open_stream(self._operation.path, self._messages(stream), token)
        with self._changed:
            self._call = call
            if self._is_closed or self._stream is not stream:
                call.cancel()
        try:
            for answer in call:
                with self._changed:
                    self._hand.received(answer)
                    self._changed.notify_all()
        except grpc.RpcError as failed:
            return self._settings.failed(failed)
        finally:
            with self._changed:
                self._leave_stream()
        return ended()

    def _messages(self, stream: object) -> Iterator[Message]:
        """What goes over a stream; a thread of gRPC's reads it."""
        while True:
            with self._changed:
                while stream is self._stream and not self._is_done():
                    if (message := self._hand.message()) is not None:
                        break
                    self._changed.wait(self._hand.until_due())
                else:
                    return
            yield message

    def _leave_stream(self) -> None:
        self._stream = None
        if self._call is not None:
            self._call.cancel()
        self._changed.notify_all()

    def _is_done(self) -> bool:
        return self._is_closed or (self._has_all and self._hand.is_empty())


def ended() -> MeshmintError:
    """What a stream fails with that the server ends, without an error, before its time."""
    return Unavailable("the server ended the stream")
