"""Many requests over one stream: each item is worked on by itself, answers go together.

Reading stops while as many items are in hand as a stream may have, and those whose
answer was not sent yet are: a client that sends without reading is slowed down and
fills no memory. An item that fails is answered with its own error. Nothing is decided
here: each item goes where the unary call goes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message
from google.rpc import status_pb2

from meshmint_server import telemetry
from meshmint_server.audit import Origin
from meshmint_server.errors import InvalidRequest, MeshmintError, Unavailable, Violation
from meshmint_server.grpc_api.edge import ENDS, Call, status_of, status_of_bug
from meshmint_server.issuance import Deadline
from meshmint_server.policy import Caller

__all__ = ["Answer", "Draining", "ItemCall", "ItemStream"]

MOST_IN_HAND = 256
_MOST_ITEMS = 256
_LONGEST_ID_BYTES = 128
# An answer has some three kilobytes. With many names it has a hundred times as much, and
# clients take messages of four megabytes unless they were told to take more.
_MOST_ANSWERS = 64
_MOST_BYTES = 512 * 1024

Request = TypeVar("Request")
Response = TypeVar("Response", bound=Message)


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

    @property
    def size(self) -> int:
        """Bytes of the outcome in a message."""
        outcome = self.error if self.response is None else self.response
        return 0 if outcome is None else outcome.ByteSize()


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
            InvalidRequest: A message has too many items; none of them was begun.
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
                    yield self._take()
                    self._room.set()
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

    def _take(self) -> list[Answer[Response]]:
        """As many of the answers that are ready as go into one message."""
        count = size = 0
        for answer in self._ready[:_MOST_ANSWERS]:
            size += answer.size
            if count and size > _MOST_BYTES:
                break
            count += 1
        some, self._ready = self._ready[:count], self._ready[count:]
        return some

    async def _read(self) -> None:
        caller = await self._authenticate()
        async for message in self._messages:
            if len(message.items) > _MOST_ITEMS:
                description = f"send at most {_MOST_ITEMS} in a message"
                raise InvalidRequest(
                    f"A message has too many items: {description}.",
                    violations=[Violation("items", description)],
                )
            # A credential ends while a stream goes on; one that is known costs little.
            caller = await self._authenticate()
            for item in message.items:
                if self._is_full():
                    # For as long as the client likes: its reading makes room.
                    await self._wait_for_room()
                    caller = await self._authenticate()
                task = asyncio.create_task(self._serve(item, caller))
                self._in_hand.add(task)
                task.add_done_callback(self._done)

    async def _authenticate(self) -> Caller:
        """The caller, as of now. The stream may be older than any request gets."""
        return await self._call.authenticate(Deadline.after(self._call.edge.time_limit))

    def _is_full(self) -> bool:
        return len(self._in_hand) + len(self._ready) >= MOST_IN_HAND

    async def _wait_for_room(self) -> None:
        while self._is_full():
            self._room.clear()
            await self._room.wait()

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
        except ENDS:
            code = "CANCELLED"
            raise
        except BaseException as error:  # noqa: BLE001  the outermost edge: INTERNAL, and logged
            code = "INTERNAL"
            answer = Answer(item.id, None, status_of_bug(error, origin))
        finally:
            telemetry.RPC_SECONDS.labels(rpc, code).observe(time.perf_counter() - started)
        self._ready.append(answer)
