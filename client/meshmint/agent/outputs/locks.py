"""One writer at a time: a lock in the directory that says who holds it.

The kernel drops the lock when its holder dies, however it dies; the file stays, and
means nothing by itself.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshmint.agent.outputs.errors import OutputError, OutputInUse, could_not

__all__ = ["Lock", "locked"]

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held.

    Attributes:
        descriptor: The descriptor of its file.
        name: The name of its file.
    """

    descriptor: int
    name: str

    def is_of(self, directory: int) -> bool:
        """Whether it still keeps others out of this directory, which may have been made anew."""
        try:
            found = os.lstat(self.name, dir_fd=directory)
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self.descriptor))


@contextmanager
def locked(directory: int, name: str, path: Path) -> Iterator[Lock]:
    """Holds the lock until left.

    Args:
        directory: The descriptor of the directory.
        name: The lock's file in it.
        path: What is locked, for errors.

    Raises:
        OutputInUse: Somebody else holds it.
        OutputError: The lock cannot be taken.
    """
    try:
        descriptor = os.open(name, _FLAGS, 0o600, dir_fd=directory)
    except OSError as error:
        raise could_not("lock", path, error) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OutputError(path.parent / name, "is no regular file: remove it")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputInUse(path, _advice(descriptor)) from None
        except OSError as error:
            raise could_not("lock", path, error) from error
        _sign(descriptor)
        yield Lock(descriptor, name)
    finally:
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    # Only for people; a full disk is no reason not to hold the lock.
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        return


def _advice(descriptor: int) -> str:
    holder = re.fullmatch(rb"([0-9]{1,10})\n", os.pread(descriptor, 16, 0))
    if holder and int(holder[1]) == os.getpid():
        return (
            "two outputs of this agent write here: give each a directory, or a destination, "
            "of its own"
        )
    who = f"the process {int(holder[1])} writes here" if holder else "another process writes here"
    return f"{who}, and only one may: stop it, or give this output a directory of its own"
