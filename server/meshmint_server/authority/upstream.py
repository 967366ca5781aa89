"""A program that has certificates for our issuers signed: the CA above, as far as we know it.

It runs without a shell, with little of our environment (where a PIN may be), in a
process group of its own that ends with it, and is given neither unlimited time nor
unlimited room. What it brings is checked like anything that an operator brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from meshmint_server.errors import Unavailable

__all__ = ["UpstreamCommand"]

_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "TZ")
_MOST_OUTPUT: Final = 1 << 20
_MOST_ERRORS: Final = 1 << 16
_LONGEST_LINE: Final = 300


class UpstreamCommand:
    """A program that reads a CSR and writes certificates.

    Args:
        command: Program and arguments.
        time_limit: The longest that it may take.
    """

    def __init__(self, command: Sequence[str], time_limit: timedelta) -> None:
        self._command = tuple(command)
        self._seconds = time_limit.total_seconds()

    async def sign(self, csr: str) -> bytes:
        """Has a CSR signed.

        Args:
            csr: PEM.

        Returns:
            What the program wrote, unread.

        Raises:
            Unavailable: It could not be run, took too long, wrote too much, or failed.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise _failed(f"cannot be run: {error}") from None
        try:
            async with asyncio.timeout(self._seconds):
                output, errors = await _talk(process, csr.encode("ascii"))
                status = await process.wait()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            if isinstance(error, TimeoutError):
                raise _failed(f"took longer than {self._seconds:g} s") from None
            raise
        if status != 0:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise _failed(f"{how}: {_first_line(errors)}")
        return output


async def _talk(process: asyncio.subprocess.Process, csr: bytes) -> tuple[bytes, bytes]:
    stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
    if stdin is None or stdout is None or stderr is None:
        raise AssertionError("unreachable: they are pipes")
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        # One that does not read it will say why, or bring the wrong certificate.
        stdin.write(csr)
        await stdin.drain()
    stdin.close()
    output, errors = await asyncio.gather(_read(stdout, _MOST_OUTPUT), _read(stderr, _MOST_ERRORS))
    return output, errors


async def _read(stream: asyncio.StreamReader, most: int) -> bytes:
    found = bytearray()
    while piece := await stream.read(1 << 16):
        found += piece
        if len(found) > most:
            raise _failed(f"wrote more than {most} bytes")
    return bytes(found)


def _first_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    line = lines[0] if lines else "it wrote nothing to standard error"
    if not line.isprintable():
        line = ascii(line)[1:-1]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"


def _failed(what: str) -> Unavailable:
    return Unavailable(f"The upstream's command {what}.", reason="UPSTREAM_FAILED")
