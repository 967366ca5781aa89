"""Where the agent's own token comes from; asked for anew at each use.

A token is never kept, logged or part of an error.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from meshmint.agent.config import AuthSettings
from meshmint.errors import TokenUnavailable
from meshmint.tokens import TokenFile

__all__ = ["TokenCall", "token_expiry", "token_source"]

TokenCall = Callable[[], str] | Callable[[], Awaitable[str]]

# Far more than any service takes.
_MAX_OUTPUT = 64 * 1024
# For a program that was killed.
_REAP_SECONDS = 5.0


def token_source(settings: AuthSettings) -> TokenCall:
    """What gives a token when it is called."""
    if settings.token_file is not None:
        return TokenFile(settings.token_file)
    if settings.environment is not None:
        name = settings.environment

        def from_environment() -> str:
            token = os.environ.get(name, "").strip()
            if not token:
                raise TokenUnavailable(f"the environment variable {name} is not set, or empty")
            return token

        return from_environment
    return _Command(settings.command or (), settings.command_timeout.total_seconds()).token


class _Command:
    """A program that prints a token, run by one at a time for all who ask meanwhile.

    Otherwise hundreds of certificates that are due together would start as many of it.
    """

    def __init__(self, command: tuple[str, ...], limit: float) -> None:
        self._command = command
        self._limit = limit
        self._run: asyncio.Task[str] | None = None
        self._waiting = 0

    async def token(self) -> str:
        """What it prints."""
        run = self._run
        if run is None or run.done():
            run = self._run = asyncio.create_task(_printed(self._command, self._limit))
        self._waiting += 1
        try:
            return await asyncio.shield(run)
        finally:
            self._waiting -= 1
            if not self._waiting:
                run.cancel()


async def _printed(command: tuple[str, ...], limit: float) -> str:
    """What the program prints; it and all that it has started are gone in the end."""
    program = command[0]
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise TokenUnavailable(
            f"the token command {program} cannot be run: {error.strerror or error}"
        ) from error
    has_ended = False
    try:
        async with asyncio.timeout(limit):
            output = b"" if process.stdout is None else await _read(process.stdout)
            if len(output) <= _MAX_OUTPUT:
                status = await process.wait()
                has_ended = True
    except TimeoutError as error:
        raise TokenUnavailable(
            f"the token command {program} did not end within {limit:g} s, and was killed: "
            "mend it, or raise auth.command_timeout"
        ) from error
    finally:
        if not has_ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # Reaped even if this task is being cancelled.
            await asyncio.shield(_reap(process))
    if len(output) > _MAX_OUTPUT:
        raise TokenUnavailable(f"the token command {program} printed more than a token")
    if status:
        raise TokenUnavailable(
            f"the token command {program} ended with status {status}: "
            "what it wrote to stderr is in the agent's"
        )
    token = output.decode("ascii", errors="replace").strip()
    if not token:
        raise TokenUnavailable(f"the token command {program} printed nothing")
    return token


async def _reap(process: asyncio.subprocess.Process) -> None:
    """Returns when a killed program is gone, or after a while.

    asyncio tells of the end of a process when its pipes are at theirs, too, and a pipe that is
    full and not read never is. One that left its group may hold the pipe for longer.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REAP_SECONDS):
            while process.stdout is not None and await process.stdout.read(_MAX_OUTPUT):
                pass
            await process.wait()


async def _read(stream: asyncio.StreamReader) -> bytes:
    output = b""
    while len(output) <= _MAX_OUTPUT and (part := await stream.read(_MAX_OUTPUT)):
        output += part
    return output


def token_expiry(token: str) -> datetime | None:
    """When a JWT says that it expires; None if it does not say so, or is none.

    Only for people who look for what is wrong: nothing is verified here.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return None
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return datetime.fromtimestamp(claims["exp"], UTC)
    except (
        binascii.Error,
        ValueError,
        KeyError,
        TypeError,
        OverflowError,
        OSError,
        RecursionError,
    ):
        return None
