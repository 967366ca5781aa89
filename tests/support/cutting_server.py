"""The way to a PostgreSQL server that breaks at the worst moment.

A unix socket that passes everything on to the real one, until it is told to lose
something: then it ends a session, before the server has the next question or, once the
server has done what it was asked for, before the client has the answer. The statement
must have run on that session before: its preparation is no question that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

__all__ = ["CuttingServer", "Loses"]

Loses = Literal["question", "answer"]

# ReadyForQuery, outside a transaction: what was asked for is done (PostgreSQL's manual,
# "Message Formats").
_READY = b"Z\x00\x00\x00\x05I"


class CuttingServer:
    """One such socket.

    Attributes:
        loses: What gets lost the next time; None passes everything.
        lost: How often something was.
    """

    def __init__(self, target: str) -> None:
        self.loses: Loses | None = None
        self.lost = 0
        self._target = target
        self._directory = Path(tempfile.mkdtemp(prefix="mmcut-", dir="/tmp"))
        self._server: asyncio.Server | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    def reroute(self, url: str) -> str:
        """The store URL that leads through here to the database of `url`."""
        (host,) = parse_qs(urlsplit(url).query)["host"]
        return url.replace(f"host={host}", f"host={self._directory}")

    async def start(self) -> None:
        """Listens."""
        path = self._directory / Path(self._target).name
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        """Ends every session."""
        if self._server is not None:
            self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._sessions)
        shutil.rmtree(self._directory)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)
        there_reader, there_writer = await asyncio.open_unix_connection(self._target)
        both = {writer, there_writer}
        self._open |= both
        ways = {
            asyncio.create_task(self._ask(reader, there_writer)),
            asyncio.create_task(self._answer(there_reader, writer)),
        }
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self._open -= both
        for one in both:
            one.transport.abort()
        # Without its connections the other way ends, too.
        await asyncio.gather(*ways, return_exceptions=True)
        for one in both:
            with contextlib.suppress(OSError):
                await one.wait_closed()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self.loses == "question":
                return self._lose()
            writer.write(chunk)
            await writer.drain()
        return None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self.loses != "answer":
                writer.write(chunk)
                await writer.drain()
            elif chunk.endswith(_READY):
                return self._lose()
        return None

    def _lose(self) -> None:
        self.loses = None
        self.lost += 1
