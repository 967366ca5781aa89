"""One file: what is in it, and how it is made so that nobody reads it who should not."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field

__all__ = ["Content", "Signature", "has", "put", "signature"]

Signature = tuple[int, ...]
"""Of one file: differs as soon as anybody has touched it."""


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into one file, and who may read it.

    Attributes:
        data: All of it.
        mode: The permissions; at no instant are they wider.
        owner: The user it belongs to; None: the agent's own.
        group: The group it belongs to; None: what the system gives it.
    """

    data: bytes = field(repr=False)
    mode: int = 0o600
    owner: int | None = None
    group: int | None = None


def put(folder: int, name: str, content: Content) -> None:
    """Makes a file that is not there yet, complete and on the disk."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, content.mode & 0o600, dir_fd=folder)
    with open(descriptor, "wb", buffering=0) as file:
        left = memoryview(content.data)
        while left:
            left = left[file.write(left) :]
        # At no instant has anybody more than in the end, and only the owner may set a mode.
        if content.group is not None:
            os.fchown(descriptor, -1, content.group)
        os.fchmod(descriptor, content.mode)
        if content.owner is not None:
            os.fchown(descriptor, content.owner, -1)
        os.fsync(descriptor)


def signature(folder: int, name: str) -> Signature:
    """Of a file, whether it may be read or not."""
    found = os.lstat(name, dir_fd=folder)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def has(
    folder: int, name: str, content: Content, made: tuple[Content, Signature] | None = None
) -> bool:
    """Whether the folder has this very file, with the right owner and permissions.

    Args:
        folder: The descriptor of the folder.
        name: The name of the file.
        content: What it should be.
        made: What was put there last, and its signature then. It counts where an agent that
            is not root has given a file away and cannot read it any more.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except PermissionError:
        return made == (content, signature(folder, name))
    except OSError:
        return False
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        return (
            stat.S_ISREG(found.st_mode)
            and stat.S_IMODE(found.st_mode) == content.mode
            and found.st_uid == (os.geteuid() if content.owner is None else content.owner)
            and content.group in (None, found.st_gid)
            and found.st_size == len(content.data)
            and file.read() == content.data
        )
