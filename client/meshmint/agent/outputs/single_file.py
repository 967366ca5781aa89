"""One file at a place of its own, replaced as a whole: its readers see the old or the new one."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from meshmint.agent.outputs.content import Content, Signature, has, put, signature
from meshmint.agent.outputs.directories import Placement, open_directory
from meshmint.agent.outputs.errors import OutputError, could_not
from meshmint.agent.outputs.locks import Lock, locked

__all__ = ["SingleFile"]


class SingleFile:
    """A file in a directory that may hold anything else.

    Args:
        path: An absolute path. A regular file there is replaced.
        placement: What its directory is like.
        replace: Whether a link there is replaced, too; it is never followed.
    """

    def __init__(self, path: Path, placement: Placement, *, replace: bool = False) -> None:
        self.path = path
        self._placement = placement
        self._replace = replace
        self._lock: Lock | None = None
        self._made: tuple[Content, Signature] | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other writer of this file out until left.

        Raises:
            OutputInUse: Another process, or another output of this one, writes it.
            OutputError: The directory cannot be made or locked.
        """
        with ExitStack() as stack:
            with self._open() as directory:
                lock = stack.enter_context(locked(directory, self._lock_name, self.path))
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def write(self, content: Content) -> bool:
        """Makes the file hold this; whether anything had to be changed.

        Raises:
            OutputInUse: Another process writes it.
            OutputError: It cannot be written; what was there before is still there, whole.
        """
        with self._open() as directory:
            # Somebody may have removed the directory, and the lock with it.
            if self._lock is None or not self._lock.is_of(directory):
                with locked(directory, self._lock_name, self.path):
                    return self._write(directory, content)
            return self._write(directory, content)

    @property
    def _lock_name(self) -> str:
        return f".{self.path.name}.meshmint-lock"

    @contextmanager
    def _open(self) -> Iterator[int]:
        with open_directory(self.path.parent, self._placement) as descriptor:
            yield descriptor

    def _write(self, directory: int, content: Content) -> bool:
        try:
            return self._bring_about(directory, content)
        except OSError as error:
            raise could_not("write", self.path, error) from error

    def _bring_about(self, directory: int, content: Content) -> bool:
        self._refuse_foreign(directory)
        self._tidy(directory)
        if has(directory, self.path.name, content, self._made):
            return False
        passing = self._passing(secrets.token_hex(8))
        try:
            put(directory, passing, content)
            os.rename(passing, self.path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            self._tidy(directory)
            raise
        self._made = content, signature(directory, self.path.name)
        os.fsync(directory)
        return True

    def _refuse_foreign(self, directory: int) -> None:
        try:
            found = os.lstat(self.path.name, dir_fd=directory)
        except FileNotFoundError:
            return
        if stat.S_ISREG(found.st_mode) or (self._replace and stat.S_ISLNK(found.st_mode)):
            return
        if stat.S_ISLNK(found.st_mode):
            raise OutputError(
                self.path,
                "is a symbolic link, which the agent does not follow: name the file that it "
                "leads to, or set 'replace: true' to have the link itself replaced",
            )
        raise OutputError(self.path, "is no regular file: move it away, or choose another name")

    def _passing(self, mark: str) -> str:
        return f".{self.path.name}.meshmint-{mark}"

    def _tidy(self, directory: int) -> None:
        """Removes what a killed writer left."""
        ours = re.compile(re.escape(self._passing("")) + "[0-9a-f]{16}")
        for name in os.listdir(directory):
            if ours.fullmatch(name):
                os.unlink(name, dir_fd=directory)
