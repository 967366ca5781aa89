"""Who may read and write the files that the service rests on.

Modes and owners only: whether this user can read a file is found by reading it,
where it is read.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from meshmint_server.cli.doctor.finding import Finding, error, warning

__all__ = [
    "check_directory",
    "check_trusted_file",
    "foreign_owner",
    "mode_of",
    "secret_file_faults",
]

_OTHERS_WRITE = stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def mode_of(path: Path) -> int | None:
    """The permission bits; None if there is no such file, or it is out of sight."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def check_trusted_file(subject: str, path: Path) -> Iterator[Finding]:
    """A file that the service believes: nobody else may write it, or put another in its place."""
    mode = mode_of(path)
    if mode is not None and mode & _OTHERS_WRITE:
        yield error(
            subject,
            f"{path} can be written by every user (mode {mode:04o}).",
            f"Check what it says, then: chmod o-w {path}",
        )
    yield from check_directory(subject, path.parent)


def check_directory(subject: str, directory: Path) -> Iterator[Finding]:
    """A directory with such a file."""
    mode = mode_of(directory)
    if mode is None or not mode & _OTHERS_WRITE:
        return
    if mode & stat.S_ISVTX:
        yield warning(
            subject,
            f"Every user can make files in {directory} (mode {mode:04o}).",
            "Use a directory that only the service's user can write.",
        )
    else:
        yield error(
            subject,
            f"Every user can replace the files in {directory} (mode {mode:04o}).",
            f"Check what is in it, then: chmod o-w {directory}",
        )


def secret_file_faults(subject: str, path: Path, what: str) -> Iterator[Finding]:
    """A file that holds a secret: nobody but its owner may read it, or write it."""
    mode = mode_of(path)
    if mode is None:
        return
    if mode & _OTHERS_WRITE:
        yield error(
            subject,
            f"{path}, which holds {what}, can be written by every user (mode {mode:04o}).",
            f"Set it anew, then: chmod 600 {path}",
        )
    elif mode & _OTHERS:
        who = "every user" if mode & stat.S_IRWXO else "its group"
        yield warning(
            subject,
            f"{path}, which holds {what}, is open to {who} (mode {mode:04o}).",
            f"Check who could have read it, then: chmod 600 {path}",
        )
    yield from check_directory(subject, path.parent)


def foreign_owner(path: Path) -> int | None:
    """The owner's user id, if that is somebody else than this user."""
    try:
        owner = path.stat().st_uid
    except OSError:
        return None
    return owner if owner != os.geteuid() else None
