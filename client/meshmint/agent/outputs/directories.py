"""Opens directories that only this agent and root can have tampered with.

Whoever may write to a directory may put a link in place of what is in it, and so have
the agent write, or give away, what it never should. So a path is walked step by step:
each directory must belong to root, the agent or the owner named in the configuration,
and nobody else may write to it (sticky directories such as /tmp are good enough above
the last one). A link on the way is followed if root or the agent made it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from meshmint.agent.outputs.errors import OutputError, could_not

__all__ = ["DirectoryMissing", "Placement", "open_directory"]

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# As many as Linux follows in one path.
_MOST_LINKS = 40
_PASSING_MODE = 0o755


class DirectoryMissing(OutputError):
    """There is no such directory, and it was not to be made."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How a directory is made if it is missing, and whom it may belong to.

    Attributes:
        mode: The permissions of the last directory; those above get 0755.
        group: The group of the last directory; None leaves it.
        owners: Users, beside root and the agent, that directories may belong to.
        others_may_write: Accept directories that others may write to.
    """

    mode: int = 0o755
    group: int | None = None
    owners: frozenset[int] = frozenset()
    others_may_write: bool = False


@contextmanager
def open_directory(path: Path, placement: Placement, *, make: bool = True) -> Iterator[int]:
    """Opens a directory, which is made if it is missing.

    Args:
        path: An absolute path.
        placement: What it must be like.
        make: Whether to make what is missing.

    Yields:
        Its descriptor.

    Raises:
        OutputError: It cannot be opened or made, or is not safe.
    """
    descriptor = _walk(path, placement, make=make)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _walk(path: Path, placement: Placement, *, make: bool) -> int:
    if not path.is_absolute():
        raise OutputError(path, "write the whole path, beginning with '/'")
    steps = [step for step in reversed(path.parts[1:]) if step != "."]
    links = 0
    here, seen = os.open("/", _OPEN), Path("/")
    try:
        while steps:
            step = steps.pop()
            seen = seen.parent if step == ".." else seen / step
            target = _link(here, step, seen, placement)
            if target is not None:
                links += 1
                if links > _MOST_LINKS:
                    raise OutputError(path, "too many symbolic links: take some out of the path")
                if target.is_absolute():
                    os.close(here)
                    here, seen = os.open("/", _OPEN), Path("/")
                    steps.extend(reversed(target.parts[1:]))
                else:
                    seen = seen.parent
                    steps.extend(reversed(target.parts))
                continue
            below = _step(here, step, seen, placement, make=make, is_last=not steps)
            os.close(here)
            here = below
            _check(here, seen, placement, may_be_sticky=bool(steps))
    except BaseException:
        os.close(here)
        raise
    return here


def _link(here: int, step: str, seen: Path, placement: Placement) -> Path | None:
    """Where a symbolic link leads; None if it is none."""
    try:
        found = os.lstat(step, dir_fd=here) if step != ".." else None
        if found is None or not stat.S_ISLNK(found.st_mode):
            return None
        target = os.readlink(step, dir_fd=here)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise could_not("look at", seen, error) from error
    if found.st_uid not in _trusted(placement):
        raise OutputError(
            seen,
            f"a symbolic link of user {found.st_uid}, who could point it elsewhere: "
            "configure the path that it leads to, or have root make the link",
        )
    return Path(target)


def _step(
    here: int, step: str, seen: Path, placement: Placement, *, make: bool, is_last: bool
) -> int:
    try:
        return os.open(step, _OPEN, dir_fd=here)
    except FileNotFoundError:
        if not make:
            raise DirectoryMissing(seen, "there is no such directory: make it") from None
    except OSError as error:
        raise could_not("open", seen, error) from error
    try:
        mode = placement.mode if is_last else _PASSING_MODE
        with suppress(FileExistsError):
            os.mkdir(step, mode, dir_fd=here)
            made = os.open(step, _OPEN, dir_fd=here)
            try:
                if is_last and placement.group is not None:
                    os.fchown(made, -1, placement.group)
                os.fchmod(made, mode)  # whatever the umask
            finally:
                os.close(made)
            os.fsync(here)
        return os.open(step, _OPEN, dir_fd=here)
    except OSError as error:
        raise could_not("make", seen, error) from error


def _trusted(placement: Placement) -> frozenset[int]:
    return placement.owners | {0, os.geteuid()}


def _check(descriptor: int, seen: Path, placement: Placement, *, may_be_sticky: bool) -> None:
    if placement.others_may_write:
        return
    found = os.fstat(descriptor)
    if found.st_uid not in _trusted(placement):
        raise OutputError(
            seen,
            f"belongs to user {found.st_uid}, who could put a link in place of what the agent "
            "writes: give it to root or to the agent's user, or name that user as the owner; where "
            "all who may write there are trusted, set 'others_may_write: true'",
        )
    is_sticky = bool(found.st_mode & stat.S_ISVTX)
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (may_be_sticky and is_sticky):
        raise OutputError(
            seen,
            f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o}), and put a link in "
            f"place of what the agent writes: chmod go-w {seen}; where all who may are trusted, "
            "as in an emptyDir of Kubernetes, set 'others_may_write: true'",
        )
