"""Many requests over one stream: each item is worked on by itself, answers go together.

Reading stops while as many items are in hand as a stream may have, so that a client
that sends without reading is slowed down and fills no memory. An item that fails is
answered with its own error. Nothing is decided here: each item goes where the unary
call goes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.rpc import status_pb2

from meshmint_server import telemetry
from meshmint_server.audit import Origin
from meshmint_server.errors import InvalidRequest, MeshmintError, Unavailable, Violation
from meshmint_server.grpc_api.edge import Call, status_of, status_of_bug
from meshmint_server.issuance import Deadline
from meshmint_server.policy import Caller

__all__ = ["Answer", "Draining", "ItemCall", "ItemStream"]

MOST_IN_HAND = 256
_LONGEST_ID_BYTES = 128
# An answer has some three kilobytes, and a message at most one megabyte.
_MOST_ANSWERS = 64

Request = TypeVar("Request")
Response = TypeVar("Response")


@dataclass(frozen=True, slots=True)
class ItemCall:
    """What `Call` is for a unary request."""

    caller: Caller
    origin: Origin
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class Answer(Generic[Response]):
    """What became of an item: a response, or else an error."""

    id: str
    response: Response | None
    error: status_pb2.Status | None


class Draining:
    """Tells streams that the server is about to stop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def begin(self) -> None:
        """No stream takes anything new."""
        self._event.set()

    async def wait(self) -> None:
        """Returns once it has begun."""
        await self._event.wait()


class ItemStream(Generic[Request, Response]):
    """One stream.

    Args:
        call: The RPC.
        messages: What the client sends: each has ``items``, with ``id`` and ``request``.
        work: Serves one request.
        draining: When to take nothing new.
    """

    def __init__(
        self,
        call: Call,
        messages: AsyncIterable[Any],
        work: Callable[[Request, ItemCall], Awaitable[Response]],
        draining: Draining,
    ) -> None:
        self._call = call
        self._messages = messages
        self._work = work
        self._draining = draining
        self._in_hand: set[asyncio.Task[None]] = set()
        self._ready: list[Answer[Response]] = []
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def answers(self) -> AsyncGenerator[list[Answer[Response]], None]:
        """Answers, as many together as are ready, until all items have theirs.

        Raises:
            Unauthenticated: The credential does not hold, or not any more.
            Unavailable: The server drains; whatever has no answer was not begun.
        """
        reading = asyncio.create_task(self._read())
        reading.add_done_callback(lambda _: self._changed.set())
        drained = asyncio.create_task(self._draining.wait())
        drained.add_done_callback(lambda _: reading.cancel())
        try:
            while not (reading.done() and not self._in_hand and not self._ready):
                await self._changed.wait()
                self._changed.clear()
                while self._ready:
                    some, self._ready = self._ready[:_MOST_ANSWERS], self._ready[_MOST_ANSWERS:]
                    yield some
            if drained.done() and reading.cancelled():
                raise Unavailable(
                    "The server is about to stop. Open another stream, and send again what has "
                    "no answer.",
                    reason="DRAINING",
                )
            reading.result()
        finally:
            # Whoever left wants no more answers; what is being recorded is recorded all the same.
            for task in (reading, drained, *self._in_hand):
                task.cancel()
            await asyncio.gather(reading, drained, *self._in_hand, return_exceptions=True)

    async def _read(self) -> None:
        caller = await self._call.authenticate()
        async for message in self._messages:
            # A credential ends while a stream goes on; one that is known costs little.
            caller = await self._call.authenticate()
            for item in message.items:
                while len(self._in_hand) >= MOST_IN_HAND:
                    self._room.clear()
                    await self._room.wait()
                task = asyncio.create_task(self._serve(item, caller))
                self._in_hand.add(task)
                task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._in_hand.discard(task)
        self._room.set()
        self._changed.set()

    async def _serve(self, item: Any, caller: Caller) -> None:
        started = time.perf_counter()
        edge, rpc = self._call.edge, self._call.origin.rpc
        origin = Origin(os.urandom(16).hex(), rpc, self._call.origin.peer)
        code = "OK"
        try:
            if not 0 < len(item.id.encode()) <= _LONGEST_ID_BYTES:
                raise InvalidRequest(
                    "An item has no id, or a long one.",
                    violations=[Violation("id", f"use 1 to {_LONGEST_ID_BYTES} bytes")],
                )
            call = ItemCall(caller, origin, Deadline.after(edge.time_limit))
            response = await self._work(item.request, call)
            answer = Answer(item.id, response, None)
        except MeshmintError as error:
            code = error.code
            answer = Answer(item.id[:_LONGEST_ID_BYTES], None, status_of(error))
        except Exception as error:  # noqa: BLE001  the outermost edge: told as INTERNAL, and logged
            code = "INTERNAL"
            answer = Answer(item.id, None, status_of_bug(error, origin))
        finally:
            telemetry.RPC_SECONDS.labels(rpc, code).observe(time.perf_counter() - started)
        self._ready.append(answer)
