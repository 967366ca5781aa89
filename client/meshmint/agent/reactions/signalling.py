"""Sends a signal to the process whose number is in a file.

The process is held by a descriptor from before it is looked at until the signal is sent,
so that the signal cannot reach another one that was given the same number meanwhile.
"""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path

from meshmint.agent.reactions.failure import AttemptFailed
from meshmint.agent.reactions.settings import SignalReaction

__all__ = ["send_signal"]

_MOST_BYTES = 64
_DELETED = " (deleted)"
# As many as Linux keeps of the name of a process (proc(5), /proc/[pid]/comm).
_NAME_CHARACTERS = 15


def send_signal(reaction: SignalReaction) -> None:
    """Sends it.

    Raises:
        AttemptFailed: There is no such process, or it is another program.
    """
    number, writer = _number(reaction.pid_file)
    try:
        process = os.pidfd_open(number)
    except ProcessLookupError:
        raise AttemptFailed(
            f"there is no process {number}, which {reaction.pid_file} names: start the program"
        ) from None
    except OSError as error:
        raise AttemptFailed(f"process {number} cannot be reached: {error.strerror}") from error
    try:
        _check_writer(number, writer, reaction.pid_file)
        if reaction.executable is not None:
            _check_program(number, reaction.executable)
        signal.pidfd_send_signal(process, signal.Signals[f"SIG{reaction.signal}"])
    except ProcessLookupError:
        raise _ended(number) from None
    except PermissionError:
        raise AttemptFailed(
            f"the agent may not send a signal to process {number}: run it as the same user, "
            "or as root (CAP_KILL)"
        ) from None
    finally:
        os.close(process)


def _ended(number: int) -> AttemptFailed:
    return AttemptFailed(f"the process {number} has just ended: start the program")


def _number(path: Path) -> tuple[int, int]:
    """The number in the file, and whose file it is."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            text, told = file.read(_MOST_BYTES), os.fstat(descriptor)
    except FileNotFoundError:
        raise AttemptFailed(
            f"there is no {path}: start the program, or correct 'pid_file'"
        ) from None
    except OSError as error:
        raise AttemptFailed(f"{path} cannot be read: {error.strerror}") from error
    found = re.fullmatch(rb"\s*([1-9][0-9]{0,8})\s*", text or b"")
    if found is None:
        raise AttemptFailed(f"{path} does not hold the number of a process: correct 'pid_file'")
    if told.st_mode & stat.S_IWOTH:
        raise AttemptFailed(
            f"{path} may be written by everyone, who could have any process get the signal: "
            "chmod o-w it"
        )
    return int(found[1]), told.st_uid


def _check_writer(number: int, writer: int, path: Path) -> None:
    """Whoever is neither root nor the agent may only name a process of his own."""
    if writer in (0, os.geteuid()):
        return
    try:
        # Not the owner of the directory: for a program that has changed its user that is root.
        status = Path(f"/proc/{number}/status").read_bytes()
    except OSError:
        raise _ended(number) from None
    found = re.search(rb"^Uid:((?:\s+[0-9]+)+)$", status, re.MULTILINE)
    users = [int(one) for one in found[1].split()] if found else []
    if writer not in users:
        raise AttemptFailed(
            f"{path} belongs to user {writer}, and process {number} does not run as that one: "
            "have the program write the file as the user it runs as, or as root"
        )


def _check_program(number: int, wanted: str) -> None:
    try:
        program, matches = _program(number, wanted)
    except OSError:
        raise _ended(number) from None
    if not matches:
        raise AttemptFailed(
            f"process {number} is {program}, and not {wanted}: the file with its number is old, "
            "or 'executable' is wrong"
        )


def _program(number: int, wanted: str) -> tuple[str, bool]:
    """Which program the process is, and whether that is the one wanted."""
    try:
        program = os.readlink(f"/proc/{number}/exe").removesuffix(_DELETED)
    except PermissionError:
        # CAP_KILL lets an agent signal other users' processes, and only CAP_SYS_PTRACE would
        # let it see their programs: their names are for everybody.
        name = Path(f"/proc/{number}/comm").read_text("utf-8", "replace").removesuffix("\n")
        return name, os.path.basename(wanted)[:_NAME_CHARACTERS] == name
    return program, wanted in (program, os.path.basename(program))
