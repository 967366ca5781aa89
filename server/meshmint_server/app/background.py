"""Tasks that run beside the listeners for as long as a worker lives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from typing import TypeAlias

import structlog

__all__ = ["Background", "background", "beat"]

log = structlog.get_logger(__name__)

BEAT_SECONDS = 1.0

Background: TypeAlias = Callable[[object], None]
"""Starts a coroutine that runs until the worker ends."""


@asynccontextmanager
async def background() -> AsyncIterator[Background]:
    """Runs tasks until the end. One that dies of a bug takes the worker with it."""
    tasks: set[asyncio.Task[None]] = set()

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("bug: a background task died; the worker is replaced", exc_info=error)
            os._exit(1)

    def start(coroutine: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)  # type: ignore[call-overload]
        task.add_done_callback(ended)
        tasks.add(task)

    try:
        yield start
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def beat(pipe: Connection, stopping: asyncio.Event) -> None:
    """Tells the supervisor that the event loop lives, and stops when it is gone."""
    while True:
        try:
            pipe.send("beat")
        except OSError:
            stopping.set()
            return
        await asyncio.sleep(BEAT_SECONDS)
