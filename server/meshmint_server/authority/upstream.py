"""A program that has certificates for our issuers signed: the CA above, as far as we know it.

It runs without a shell, with little of our environment (where a PIN may be), and is
given neither unlimited time nor unlimited room: its process group is ended beyond that.
What it brings is checked like anything that an operator brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import timedelta
from tempfile import TemporaryFile
from typing import IO, Final

from meshmint_server.errors import Unavailable

__all__ = ["UpstreamCommand"]

_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "TZ")
_MOST_OUTPUT: Final = 1 << 20
_MOST_ERRORS: Final = 1 << 16
_LONGEST_LINE: Final = 300
_GLANCE_SECONDS: Final = 0.05


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
        # Files and no pipes: nobody has to read along, and what a runaway child of the
        # program still holds keeps us from nothing.
        with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
            stdin.write(csr.encode("ascii"))
            stdin.seek(0)
            status = await self._run(stdin, stdout, stderr)
            output, errors = _written(stdout, _MOST_OUTPUT), _written(stderr, _MOST_ERRORS)
        if status != 0:
            how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise _failed(f"{how}: {_first_line(errors)}")
        return output

    async def _run(self, stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]) -> int:
        """Runs it to its end, or ends it; its exit status, negative for a signal."""
        deadline = time.monotonic() + self._seconds
        try:
            process = await asyncio.to_thread(
                subprocess.Popen,
                self._command,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise _failed(f"cannot be run: {error}") from None
        try:
            while (status := process.poll()) is None:
                if time.monotonic() > deadline:
                    raise _failed(f"took longer than {self._seconds:g} s")
                _written(stdout, _MOST_OUTPUT)
                _written(stderr, _MOST_ERRORS)
                await asyncio.sleep(_GLANCE_SECONDS)
        except BaseException:
            # All that it started goes with it. The process is not reaped yet, so its number is its.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.to_thread(process.wait)
            raise
        return status


def _written(file: IO[bytes], most: int) -> bytes:
    # At an offset: the position is shared with the program that writes.
    content = os.pread(file.fileno(), most + 1, 0)
    if len(content) > most:
        raise _failed(f"wrote more than {most} bytes")
    return content


def _first_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    line = lines[0] if lines else "it wrote nothing to standard error"
    if not line.isprintable():
        line = ascii(line)[1:-1]
    return line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…"


def _failed(what: str) -> Unavailable:
    return Unavailable(f"The upstream's command {what}.", reason="UPSTREAM_FAILED")
