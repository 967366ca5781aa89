"""Running a call for many over streams, for asyncio; see meshmint.exchange.

Tasks do what threads do there, and differ only in how they wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
)
from typing import Any, Generic, TypeVar

import grpc

from meshmint.errors import MeshmintError
from meshmint.exchange import ended
from meshmint.in_hand import InHand, Item
from meshmint.results import Outcome
from meshmint.settings import Settings
from meshmint.stream_operations import StreamOperation

__all__ = ["AsyncExchange"]

Request = TypeVar("Request")
Result = TypeVar("Result")


class AsyncExchange(Generic[Request, Result]):
    """One call for many in one event loop.

    Args:
        operation: The call.
        settings: Those of the client.
        open_stream: Opens a stream, given its path and the token.
    """

    def __init__(
        self,
        operation: StreamOperation[Request, Result],
        settings: Settings,
        open_stream: Callable[[str, str | None], Any],
    ) -> None:
        self._operation = operation
        self._settings = settings
        self._open_stream = open_stream
        self._hand = InHand(operation, settings.attempts)
        # One for each who waits: the reader of requests, the sender, and who iterates.
        self._room, self._due, self._news = (asyncio.Event() for _ in range(3))
        self._call: Any = None
        self._has_all = False
        self._is_closed = False
        self._failure: BaseException | None = None
        self._source_failure: BaseException | None = None

    async def outcomes(
        self, requests: AsyncIterable[Request] | Iterable[Request]
    ) -> AsyncGenerator[Outcome[Request, Result], None]:
        """Yields each as it comes; see Exchange.outcomes."""
        reading = asyncio.create_task(self._take(requests))
        exchanging = asyncio.create_task(self._exchange())
        try:
            while (answered := await self._next()) is not None:
                yield answered()
            # The server has nothing more to do than to end the stream.
            await asyncio.wait([exchanging], timeout=self._settings.timeout)
            if self._failure is not None:
                raise self._failure
        finally:
            self.close(None)
            await _end(reading, exchanging)

    def close(self, failure: MeshmintError | None) -> None:
        """Ends everything; what has no outcome ends with the failure."""
        self._is_closed = True
        self._failure = self._failure or failure
        self._leave_stream()

    async def _next(self) -> Callable[[], Outcome[Request, Result]] | None:
        while (answered := self._hand.next_answered()) is None:
            if self._failure is not None:
                raise self._failure
            if self._is_done():
                break
            if self._hand.expire():
                continue
            if self._hand.is_given_up():
                self._leave_stream()
            await _wait(self._news, self._hand.until_deadline())
        self._tell()  # there is room, or an end
        if answered is None and self._source_failure is not None:
            raise self._source_failure
        return answered

    async def _take(self, requests: AsyncIterable[Request] | Iterable[Request]) -> None:
        """Reads the requests, the next one when there is room for it."""
        try:
            async for request in _each(requests):
                self._hand.add(await self._prepared(request))
                self._tell()
                while not self._is_closed and not self._hand.has_room():
                    await _wait(self._room, None)
                if self._is_closed:
                    return
        except BaseException as error:  # noqa: BLE001 - the iterable's own, told to who iterates
            self._source_failure = error
        self._has_all = True
        self._tell()

    async def _prepared(self, request: Request) -> Item[Request, Result] | Outcome[Request, Result]:
        if self._operation.makes_keys:
            return await asyncio.to_thread(self._hand.prepared, request)
        return self._hand.prepared(request)

    async def _exchange(self) -> None:
        """Opens streams, one after the other, while something is to be sent."""
        try:
            while await self._wait_until_due():
                self._hand.broke(await self._converse())
                self._tell()
        except BaseException as error:  # noqa: BLE001 - told to who iterates
            self._failure = self._failure or error
            self._tell()

    async def _converse(self) -> MeshmintError:
        """One stream: opens it, takes its answers in, and returns what ended it."""
        token = await self._settings.tokens.get_async()
        call = self._call = self._open_stream(self._operation.path, token)
        status = _Status(call)
        sending = asyncio.create_task(self._send(call))
        try:
            while isinstance(answer := await call.read(), bytes):
                self._hand.received(answer)
                self._tell()
        except grpc.aio.AioRpcError:
            if status.error is not None:
                return self._settings.failed(status.error)
        except asyncio.CancelledError:
            # A stream that was left looks like our own cancellation.
            task = asyncio.current_task()
            if self._is_closed or task is None or task.cancelling():
                raise
        finally:
            self._leave_stream()
            await _end(sending)
        return ended()

    async def _send(self, call: Any) -> None:
        while await self._wait_until_due(call):
            await call.write(self._hand.message())
        if call is self._call:
            await call.done_writing()

    async def _wait_until_due(self, call: Any = None) -> bool:
        """Waits until something is to be sent over this stream, or over a new one."""
        while call is self._call and not self._is_done():
            pause = self._hand.until_due()
            if pause == 0:
                return True
            await _wait(self._due, pause)
        return False

    def _leave_stream(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()
        self._tell()

    def _tell(self) -> None:
        for change in (self._room, self._due, self._news):
            change.set()

    def _is_done(self) -> bool:
        return self._is_closed or (self._has_all and self._hand.is_empty())


class _Status:
    """What a stream has ended with, noted when it comes.

    If a message is on its way then, that fails, and grpc.aio puts an INTERNAL of its own in
    the place of the status that came, or that was about to (grpc/grpc#36066).

    Attributes:
        error: The status, if it is an error and came from the server or the network.
    """

    def __init__(self, call: Any) -> None:
        self.error: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        code, details = _at_once(call.code()), _at_once(call.details())
        if code is grpc.StatusCode.OK or details == "Internal error from Core":
            return
        self.error = grpc.aio.AioRpcError(
            code,
            _at_once(call.initial_metadata()),
            _at_once(call.trailing_metadata()),
            details,
            None,
        )


def _at_once(known: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        known.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError


async def _each(
    requests: AsyncIterable[Request] | Iterable[Request],
) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request


async def _wait(change: asyncio.Event, seconds: float | None) -> None:
    change.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await change.wait()


async def _end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
