"""One HTTP connection, and how long a stranger may take on it.

Whoever sends nothing, or a byte now and then, or does not read its answer, holds a
place that others need. Each part of an exchange has its limit, and where no place is
left, whoever has waited longest makes room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEAD_SECONDS", "Connection"]

# From the connection, or the first byte of a request, to the end of its head.
HEAD_SECONDS = 10.0
# From there to the last byte of the answer: a CRL of megabytes on a slow line.
_EXCHANGE_SECONDS = 120.0
# An exchange that has taken so long may have to make room for others.
_PATIENCE_SECONDS = 10.0


class Connection(H11Protocol):
    """Ends a connection that takes too long, and the one that took longest if there are many."""

    _timer: asyncio.TimerHandle | None = None
    _begun_at = 0.0
    _is_at_head = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a place; from the one that has waited longest if all are taken."""
        super().connection_made(transport)
        self._begin(HEAD_SECONDS)
        # One less than there may be: at the limit itself uvicorn refuses.
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            now = self.loop.time()
            others = (
                one for one in self.connections if isinstance(one, Connection) and one is not self
            )
            _make_room(others, now)

    def connection_lost(self, exc: Exception | None) -> None:
        """Gives the place back."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on."""
        if not self._is_at_head and self._is_idle:
            self._is_at_head = True
            self._begin(HEAD_SECONDS)
        super().data_received(data)

    def handle_events(self) -> None:
        """Notices where the head of a request has ended."""
        cycle = self.cycle
        super().handle_events()
        if self.cycle is not cycle:
            self._is_at_head = False
            self._begin(_EXCHANGE_SECONDS)

    @property
    def _is_idle(self) -> bool:
        """Whether the answer to the last request has left; uvicorn's own limit is for that."""
        return (
            self.cycle is not None
            and self.cycle.response_complete
            and self.transport.get_write_buffer_size() == 0
        )

    def may_make_room(self, now: float) -> bool:
        """Whether others may be let in instead."""
        is_waiting = self._is_at_head or self._is_idle
        return is_waiting or now - self._begun_at > _PATIENCE_SECONDS

    @property
    def begun_at(self) -> float:
        """When what it does now began."""
        return self._begun_at

    def end(self) -> None:
        """Ends it at once: a closed one would wait until everything was read."""
        self.connections.discard(self)
        self.transport.abort()

    def _begin(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._begun_at = self.loop.time()
        self._timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self._is_at_head or not self._is_idle:
            self.end()


def _make_room(connections: Iterable[Connection], now: float) -> None:
    waiting = [one for one in connections if one.may_make_room(now)]
    if waiting:
        min(waiting, key=lambda one: one.begun_at).end()
