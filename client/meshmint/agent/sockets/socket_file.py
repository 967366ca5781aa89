"""The file of a unix socket: made where nobody can reach it, then put in its place.

The permissions of this file are all that keeps a stranger from the private keys, so
it never exists at its path with others; and nobody else may be able to put a socket
of theirs in its place, or workloads would take their identity from a stranger.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import hashlib
import os
import pwd
import socket
import stat
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from meshmint.agent.sockets.settings import SocketSettings

__all__ = ["SocketError", "SocketFile"]

_DIRECTORY_MODE = 0o755


class SocketError(Exception):
    """The socket cannot be served; the text says which, why, and what to do."""


class SocketFile:
    """The place of one socket, held from entering to leaving.

    Args:
        settings: Of the socket.

    Raises:
        SocketError: On entering: the directory is missing or others could write to it,
            or somebody serves this path already.
    """

    def __init__(self, settings: SocketSettings) -> None:
        self._settings = settings
        self._path = Path(settings.path)
        self._directory = self._path.parent
        # Short, for the sake of the address, and always the same, to be found again.
        name = hashlib.sha256(os.fsencode(self._path.name)).hexdigest()
        self._passing = self._directory / f".{name[:8]}"
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            try:
                self._check_directory()
                self._owner = _number(self._settings.owner, "user")
                self._group = _number(self._settings.group, "group")
                undo.callback(os.close, self._lock())
                self._refuse_a_living_socket()
                self._make_passing()
            except OSError as error:
                raise self._failed(error) from error
            undo.callback(self._remove_passing)
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    @property
    def address(self) -> str:
        """Where to listen, for gRPC, before `publish`."""
        return f"unix:{quote(str(self._passing / 's'))}"

    def publish(self) -> None:
        """Gives the socket its owner and mode, and puts it in its place.

        Raises:
            SocketError: It cannot be given away, or the directory cannot be written.
        """
        made = self._passing / "s"
        self._give(made, -1, self._group)
        try:
            # Before it is given away: only the owner may set a mode.
            made.chmod(self._settings.mode)
        except OSError as error:
            raise self._failed(error) from error
        self._give(made, self._owner, -1)
        try:
            own = made.lstat()
            made.replace(self._path)
            self._remove_passing()
        except OSError as error:
            raise self._failed(error) from error
        self._undo.callback(self._withdraw, own)

    def _give(self, made: Path, owner: int, group: int) -> None:
        if (owner, group) == (-1, -1):
            return
        try:
            os.chown(made, owner, group)
        except OSError as error:
            raise SocketError(
                f"{self._path}: {error.strerror}: only root (CAP_CHOWN) gives a socket to another "
                f"user, and root and its members to a group: change owner or group, or run the "
                f"agent as somebody who may"
            ) from error

    def _make_passing(self) -> None:
        """Makes the folder in which the socket is made; one of a killed agent is cleared away."""
        with contextlib.suppress(FileNotFoundError):
            found = self._passing.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise SocketError(f"{self._path}: the agent needs {self._passing}: remove it")
            self._remove_passing()
        self._passing.mkdir(mode=0o700)

    def _remove_passing(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._passing / "s").unlink(missing_ok=True)
            self._passing.rmdir()

    def _withdraw(self, own: os.stat_result) -> None:
        # Whoever removed it may have put another there.
        with contextlib.suppress(OSError):
            found = self._path.lstat()
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
                self._path.unlink()

    def _check_directory(self) -> None:
        directory = self._directory
        with contextlib.suppress(FileExistsError):
            try:
                directory.mkdir(mode=_DIRECTORY_MODE)
                # Whatever the umask: workloads must be able to reach the socket.
                directory.chmod(_DIRECTORY_MODE)
            except FileNotFoundError:
                raise SocketError(
                    f"{self._path}: {directory.parent} is missing: make it, for the agent or root "
                    f"alone to write to"
                ) from None
        real = Path(os.path.realpath(directory))
        if real != directory:
            raise SocketError(
                f"{self._path}: the directory is reached over a symbolic link: "
                f"write {real / self._path.name} instead"
            )
        if not stat.S_ISDIR(directory.stat().st_mode):
            raise SocketError(f"{self._path}: {directory} is not a directory")
        if self._settings.shared_directory:
            return
        for place in (directory, *directory.parents):
            found = place.stat()
            # In a sticky directory nobody renames what is not theirs, but everybody makes new.
            is_kept = place != directory and found.st_mode & stat.S_ISVTX
            if found.st_uid not in {0, os.geteuid()} or (found.st_mode & 0o022 and not is_kept):
                raise SocketError(
                    f"{self._path}: others than root and the agent can write to {place}, and could "
                    f"put a socket of their own in this one's place: run 'chmod go-w {place}' and "
                    f"give it to root or the agent, or take another directory; where you trust "
                    f"all who can write there, set shared_directory: true"
                )

    def _lock(self) -> int:
        """Holds the path against another agent, which may be starting at this moment."""
        file = self._directory / f".{self._path.name}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(file, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise SocketError(
                f"{self._path}: another agent serves this socket: stop it, or give this one "
                f"another path"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _refuse_a_living_socket(self) -> None:
        try:
            found = self._path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise SocketError(
                f"{self._path}: there is something that is not a socket: move it away"
            )
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            answer = caller.connect_ex(str(self._path))
        # One that was given away is out of reach for an agent that is not root. Nobody else than
        # an agent gives it that owner, and the lock says that none serves it any more.
        is_left_behind = answer == errno.EACCES and found.st_uid == self._owner
        if answer not in {errno.ECONNREFUSED, errno.ENOENT} and not is_left_behind:
            raise SocketError(
                f"{self._path}: another program serves this socket: stop it, or give the agent "
                f"another path"
            )

    def _failed(self, error: OSError) -> SocketError:
        return SocketError(
            f"{self._path}: {error.strerror or error}: check that the agent may write to "
            f"{self._directory}"
        )


def _number(name: str | int | None, kind: str) -> int:
    if name is None:
        return -1
    if isinstance(name, int):
        return name
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        raise SocketError(
            f"there is no {kind} {name!r} on this machine: create it, or write another or a number"
        ) from None
