"""Running operations over a channel: token, deadline, retries, errors.

The two runners differ only in how they wait. The channel of the asynchronous
one is opened by its first call, inside the event loop that it then belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from meshmint.aio_exchange import AsyncExchange
from meshmint.errors import (
    AnswerRefused,
    ConfigurationError,
    DeadlineExceeded,
    MeshmintError,
)
from meshmint.exchange import Exchange, ended
from meshmint.operations import Operation, Result
from meshmint.results import Outcome
from meshmint.retry import Attempts
from meshmint.settings import Settings
from meshmint.stream_operations import Request, StreamOperation

__all__ = ["AsyncCalls", "Calls"]

_Metadata = tuple[tuple[str, str], ...]
_CLOSED = "this client has been closed"


class Calls:
    """Runs operations and waits for them. May be used from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        transport = settings.transport
        self._channel = (
            grpc.insecure_channel(transport.target, transport.options)
            if transport.credentials is None
            else grpc.secure_channel(transport.target, transport.credentials, transport.options)
        )
        self._methods: dict[str, Callable[..., Any]] = {}
        self._closed = threading.Event()
        self._exchanges: set[Exchange[Any, Any]] = set()

    def run(self, operation: Operation[Result]) -> Result:
        """Makes the call, again where that makes sense.

        Raises:
            MeshmintError: It failed for good, or the answer was refused.
        """
        if self._closed.is_set():
            raise ConfigurationError(_CLOSED)
        attempts = self._settings.attempts(operation)
        method = self._method(operation)
        while True:
            token = self._settings.tokens.get() if operation.needs_token else None
            try:
                answer = method(
                    operation.request, timeout=attempts.left(), metadata=_metadata(token)
                )
            except grpc.RpcError as failed:
                if self._closed.is_set():  # by another thread, and the call ended with it
                    raise ConfigurationError(_CLOSED) from failed
                error = self._settings.failed(failed)
                pause = attempts.pause_after(error)
                if pause is None:
                    raise error from failed
            else:
                return _result(operation, answer)
            if self._closed.wait(pause):
                raise ConfigurationError(_CLOSED)

    def watch(
        self, operation: Operation[Result], is_news: Callable[[Result, Result | None], bool]
    ) -> Generator[Result, None, None]:
        """Keeps a stream open, and yields what comes of it that is news.

        Args:
            operation: What to open; each message gives a result.
            is_news: Whether a result is worth telling after the last one told.

        Raises:
            MeshmintError: There was no first message in time, or something came up that
                no reconnection mends.
        """
        if self._closed.is_set():
            raise ConfigurationError(_CLOSED)
        reconnects = self._settings.reconnects(operation)
        last: Result | None = None
        while not self._closed.is_set():
            error: MeshmintError
            try:
                for answer in self._stream(operation, reconnects.patience()):
                    reconnects.received()
                    result = _result(operation, answer)
                    if is_news(result, last):
                        last = result
                        yield result
                error = ended()
            except grpc.RpcError as failed:
                error = self._settings.failed(failed)
            except DeadlineExceeded as late:
                error = late
            if self._closed.is_set():
                return
            pause = reconnects.pause_after(error)
            if pause is None:
                raise error
            self._closed.wait(pause)

    def _stream(self, operation: Operation[Any], patience: float) -> Generator[bytes, None, None]:
        """One stream; its first message must come within ``patience`` seconds."""
        if operation.path not in self._methods:
            self._methods[operation.path] = self._channel.unary_stream(
                operation.path,
                request_serializer=_serialized,
                response_deserializer=_unparsed,
            )
        try:
            call = self._methods[operation.path](operation.request, metadata=())
        except ValueError:
            if self._closed.is_set():  # in this very moment, by another thread
                return
            raise
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            call.cancel()

        timer = threading.Timer(patience, give_up)
        timer.daemon = True
        timer.start()
        try:
            for answer in call:
                timer.cancel()
                yield answer
        except grpc.RpcError as failed:
            if is_late.is_set():
                raise _no_message() from failed
            raise
        finally:
            timer.cancel()
            call.cancel()

    def many(
        self, operation: StreamOperation[Request, Result], requests: Iterable[Request]
    ) -> Generator[Outcome[Request, Result], None, None]:
        """Makes a call for many; yields what becomes of each request.

        Raises:
            MeshmintError: What no other stream mends.
        """
        exchange = Exchange(operation, self._settings, self._open_exchange)
        self._exchanges.add(exchange)
        try:
            if self._closed.is_set():
                raise ConfigurationError(_CLOSED)
            yield from exchange.outcomes(requests)
        finally:
            self._exchanges.discard(exchange)

    def _open_exchange(self, path: str, messages: Iterator[Message], token: str | None) -> Any:
        if path not in self._methods:
            self._methods[path] = self._channel.stream_stream(
                path, request_serializer=_serialized, response_deserializer=_unparsed
            )
        return self._methods[path](messages, metadata=_metadata(token))

    def close(self) -> None:
        """Closes the channel; calls under way end with ConfigurationError."""
        self._closed.set()
        for exchange in tuple(self._exchanges):
            exchange.close(ConfigurationError(_CLOSED))
        self._channel.close()

    def _method(self, operation: Operation[Any]) -> Callable[..., Any]:
        if operation.path not in self._methods:
            self._methods[operation.path] = self._channel.unary_unary(
                operation.path,
                request_serializer=_serialized,
                response_deserializer=_unparsed,
            )
        return self._methods[operation.path]


class AsyncCalls:
    """Runs operations in one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Callable[..., Any]] = {}
        self._closed = False
        self._exchanges: set[AsyncExchange[Any, Any]] = set()

    async def run(self, operation: Operation[Result]) -> Result:
        """Makes the call, again where that makes sense.

        Raises:
            MeshmintError: It failed for good, or the answer was refused.
        """
        if self._closed:
            raise ConfigurationError(_CLOSED)
        attempts = self._settings.attempts(operation)
        method = self._method(operation)
        while True:
            token = await self._token(attempts) if operation.needs_token else None
            try:
                answer = await method(
                    operation.request, timeout=attempts.left(), metadata=_metadata(token)
                )
            except grpc.aio.AioRpcError as failed:
                error = self._settings.failed(failed)
                pause = attempts.pause_after(error)
                if pause is None:
                    raise error from failed
            else:
                return _result(operation, answer)
            await asyncio.sleep(pause)

    async def watch(
        self, operation: Operation[Result], is_news: Callable[[Result, Result | None], bool]
    ) -> AsyncGenerator[Result, None]:
        """Keeps a stream open, and yields what comes of it that is news; see Calls.watch."""
        if self._closed:
            raise ConfigurationError(_CLOSED)
        reconnects = self._settings.reconnects(operation)
        last: Result | None = None
        while not self._closed:
            error: MeshmintError
            call = self._open_stream(operation)
            try:
                patience: float | None = reconnects.patience()
                while True:
                    async with asyncio.timeout(patience):
                        answer = await call.read()
                    if not isinstance(answer, bytes):  # grpc.aio.EOF
                        break
                    patience = None
                    reconnects.received()
                    result = _result(operation, answer)
                    if is_news(result, last):
                        last = result
                        yield result
                error = ended()
            except grpc.aio.AioRpcError as failed:
                error = self._settings.failed(failed)
            except TimeoutError:
                error = _no_message()
            except asyncio.CancelledError:
                # A stream that somebody else ended looks like our own cancellation.
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                error = ended()
            finally:
                call.cancel()
            if self._closed:
                return
            pause = reconnects.pause_after(error)
            if pause is None:
                raise error
            await asyncio.sleep(pause)

    def _open_stream(self, operation: Operation[Any]) -> grpc.aio.UnaryStreamCall[Any, bytes]:
        channel = self._open_channel()
        if operation.path not in self._methods:
            self._methods[operation.path] = channel.unary_stream(
                operation.path,
                request_serializer=_serialized,
                response_deserializer=_unparsed,
            )
        call: grpc.aio.UnaryStreamCall[Any, bytes] = self._methods[operation.path](
            operation.request
        )
        return call

    async def many(
        self,
        operation: StreamOperation[Request, Result],
        requests: AsyncIterable[Request] | Iterable[Request],
    ) -> AsyncGenerator[Outcome[Request, Result], None]:
        """Makes a call for many; yields what becomes of each request; see Calls.many."""
        if self._closed:
            raise ConfigurationError(_CLOSED)
        exchange = AsyncExchange(operation, self._settings, self._open_exchange)
        self._exchanges.add(exchange)
        try:
            async with contextlib.aclosing(exchange.outcomes(requests)) as outcomes:
                async for outcome in outcomes:
                    yield outcome
        finally:
            self._exchanges.discard(exchange)

    def _open_exchange(self, path: str, token: str | None) -> Any:
        channel = self._open_channel()
        if path not in self._methods:
            self._methods[path] = channel.stream_stream(
                path, request_serializer=_serialized, response_deserializer=_unparsed
            )
        return self._methods[path](None, metadata=_metadata(token))

    async def _token(self, attempts: Attempts) -> str | None:
        try:
            async with asyncio.timeout(attempts.left()) as limit:
                return await self._settings.tokens.get_async()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the token source gave no token within the time-out") from error

    async def close(self) -> None:
        """Closes the channel; calls under way end as cancelled."""
        self._closed = True
        for exchange in tuple(self._exchanges):
            exchange.close(ConfigurationError(_CLOSED))
        if self._channel is not None:
            await self._channel.close(None)

    def _open_channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            transport = self._settings.transport
            self._channel = (
                grpc.aio.insecure_channel(transport.target, transport.options)
                if transport.credentials is None
                else grpc.aio.secure_channel(
                    transport.target, transport.credentials, transport.options
                )
            )
        return self._channel

    def _method(self, operation: Operation[Any]) -> Callable[..., Any]:
        channel = self._open_channel()
        if operation.path not in self._methods:
            self._methods[operation.path] = channel.unary_unary(
                operation.path,
                request_serializer=_serialized,
                response_deserializer=_unparsed,
            )
        return self._methods[operation.path]


def _serialized(request: Message) -> bytes:
    return request.SerializeToString()


def _unparsed(answer: bytes) -> bytes:
    # Parsed in _result, where a broken answer becomes an error of ours.
    return answer


def _metadata(token: str | None) -> _Metadata:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def _result(operation: Operation[Result], answer: bytes) -> Result:
    try:
        message = operation.answer(answer)
    except DecodeError as error:
        raise AnswerRefused("the answer is not the message that this call returns") from error
    return operation.result(message)


def _no_message() -> MeshmintError:
    return DeadlineExceeded("the stream sent nothing within the time-out")
