"""Runs a program: no shell, a clean environment, and an end, whatever it does.

It has a process group of its own, which is ended as a whole when time is up. What it
leaves running after it has ended well by itself is its own affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Sequence

from meshmint.agent.reactions.change import Change, environment_of
from meshmint.agent.reactions.failure import AttemptFailed, printable
from meshmint.agent.reactions.settings import CommandReaction

__all__ = ["run_command"]

_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE_SECONDS = 3.0
# For what is still in the pipe when the program has ended; its children may hold it open.
_LAST_WORDS_SECONDS = 0.5
_KEPT_BYTES = 4096


async def run_command(reaction: CommandReaction, changes: Sequence[Change]) -> None:
    """Runs it to its end.

    Raises:
        AttemptFailed: It cannot be run, fails, or does not end in time.
    """
    async with _output() as (tail, writer):
        try:
            process = await asyncio.create_subprocess_exec(
                *reaction.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writer,
                stderr=writer,
                env=_environment(reaction, changes),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise AttemptFailed(_cannot_run(reaction, error)) from error
        finally:
            os.close(writer)
        try:
            status = await _status(process, reaction.timeout.total_seconds(), tail)
        finally:
            if process.returncode is None:
                await _kill_and_wait(process)
        if status:
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise AttemptFailed(f"it ended with {how}", await tail.said())


async def _status(process: asyncio.subprocess.Process, seconds: float, tail: _Tail) -> int:
    try:
        async with asyncio.timeout(seconds):
            return await process.wait()
    except TimeoutError:
        await _end(process)
        raise AttemptFailed(
            f"it did not end within {seconds:g} s and was killed: give it a longer 'timeout', "
            "or have it do less",
            await tail.said(),
        ) from None


def _environment(reaction: CommandReaction, changes: Sequence[Change]) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {"PATH": _PATH} | inherited | reaction.environment | environment_of(changes)


def _cannot_run(reaction: CommandReaction, error: OSError) -> str:
    program = reaction.command[0]
    if isinstance(error, FileNotFoundError):
        return f"there is no program {program!r}: give its whole path, or install it"
    if isinstance(error, PermissionError):
        return f"the agent may not run {program!r}: make it executable for the agent's user"
    return f"{program!r} cannot be run: {error.strerror or error}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends the whole group: asked first, then killed."""
    _kill(process, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()
    # Children may have stayed when the first one went.
    await _kill_and_wait(process)


async def _kill_and_wait(process: asyncio.subprocess.Process) -> None:
    _kill(process, signal.SIGKILL)
    # One that hangs in the kernel does not even die of that.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_SECONDS):
            await process.wait()


def _kill(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class _Tail(asyncio.Protocol):
    """The end of what is written to a pipe, which is always read, so that nobody waits."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self._data += data
        del self._data[:-_KEPT_BYTES]

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended.set()

    async def said(self) -> str:
        """What to add to a failure."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._ended.wait()
        text = printable(bytes(self._data))
        return f"; it said: {text}" if text else "; it said nothing"


@contextlib.asynccontextmanager
async def _output() -> AsyncIterator[tuple[_Tail, int]]:
    """A pipe: the end that is read here, and the one for the program, to be closed by the user."""
    reader, writer = os.pipe()
    file = open(reader, "rb", buffering=0)  # noqa: SIM115, ASYNC230 - the transport closes it
    transport, tail = await asyncio.get_running_loop().connect_read_pipe(_Tail, file)
    try:
        yield tail, writer
    finally:
        transport.close()
