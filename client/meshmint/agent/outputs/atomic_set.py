"""Files in one directory that change together, so that no reader ever sees a key beside
the wrong certificate.

The directory holds, as a projected volume of Kubernetes does:

    key.pem -> ..data/key.pem         what programs are told to read
    cert.pem -> ..data/cert.pem
    ..data -> ..meshmint-5f0c…        the version that counts
    ..meshmint-5f0c…/                 its files, complete before anything points to it
    ..meshmint-lock                   who writes here

A version is made under another name, flushed to the disk, named, and then becomes the
one that counts by a single rename of `..data`. Who wants files that belong together
opens the directory behind `..data` once and reads in there; the one before stays for
a while. What is not ours in the directory is never touched. Nothing that is in here
follows a link that it did not make.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from meshmint.agent.outputs.content import Content, Signature, has, put, signature
from meshmint.agent.outputs.directories import DirectoryMissing, Placement, open_directory
from meshmint.agent.outputs.errors import OutputError, could_not
from meshmint.agent.outputs.locks import Lock, locked

__all__ = ["AtomicSet"]

_DATA = "..data"
_LOCK = "..meshmint-lock"
_UNFINISHED = "..meshmint-new-"
_VERSION = re.compile(r"\.\.meshmint-[0-9a-f]{16}")
# Not hidden, no way out, nothing that a terminal or a shell would take amiss.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,239}")
# A version that was replaced stays this long, for who has opened it; and not more than so many.
_KEEP_SECONDS = 60.0
_KEEP_VERSIONS = 8
_READ_ATTEMPTS = 3
_MOST_BYTES = 16 * 1024 * 1024
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class AtomicSet:
    """The set of files in one directory.

    Args:
        directory: An absolute path; it is made when the set is first written.
        placement: What the directory is like; by default it is for its owner alone.
        replace: Whether a file that is not ours, but has the name of one of ours, is
            replaced; otherwise it is refused.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        placement: Placement = Placement(mode=0o700),  # noqa: B008 - frozen
        *,
        replace: bool = False,
    ) -> None:
        self.directory = Path(directory)
        self._placement = placement
        self._replace = replace
        self._lock: Lock | None = None
        self._made: dict[str, tuple[Content, Signature]] = {}

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps every other writer out until left; the directory is made if it is missing.

        Raises:
            OutputInUse: Another process, or another set of this one, writes here.
            OutputError: The directory cannot be made or locked.
        """
        with ExitStack() as stack:
            with self._open() as directory:
                lock = stack.enter_context(locked(directory, _LOCK, self.directory))
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    def write(self, files: Mapping[str, Content]) -> bool:
        """Makes the directory hold these files, all at once, and no others of ours.

        Args:
            files: By name.

        Returns:
            Whether anything had to be changed.

        Raises:
            OutputInUse: Another process writes here.
            OutputError: It cannot be written; what was there before is still there, whole.
        """
        for name in files:
            if not _NAME.fullmatch(name):
                raise OutputError(
                    self.directory,
                    f"{name!r} is no name for a file: use letters, digits and . _ @ + -, "
                    "and begin with a letter or a digit",
                )
        with self._open() as directory:
            # Somebody may have removed the directory, and the lock with it.
            if self._lock is None or not self._lock.is_of(directory):
                with locked(directory, _LOCK, self.directory):
                    return self._write(directory, files)
            return self._write(directory, files)

    def read(self) -> dict[str, bytes]:
        """The files that belong together at this moment; empty if there are none.

        Those that were given to others, and cannot be read any more, are left out.

        Raises:
            OutputError: They are there and cannot be read.
        """
        # What was opened once stays one version, unless it was replaced long ago.
        for _ in range(_READ_ATTEMPTS):
            try:
                with self._open(make=False) as directory:
                    version = self._version(directory)
                    return {} if version is None else _read(directory, version)
            except FileNotFoundError:
                continue
            except DirectoryMissing:
                return {}
            except OSError as error:
                raise could_not("read", self.directory, error) from error
        # Somebody has removed what `..data` leads to.
        return {}

    @contextmanager
    def _open(self, *, make: bool = True) -> Iterator[int]:
        with open_directory(self.directory, self._placement, make=make) as descriptor:
            yield descriptor

    def _version(self, directory: int) -> str | None:
        """The name of the version that counts."""
        try:
            target = os.readlink(_DATA, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError:
            target = ""
        if not _VERSION.fullmatch(target):
            raise OutputError(
                self.directory / _DATA,
                "was not made by the agent, perhaps by Kubernetes for a volume of its own: "
                "choose another directory, or remove it",
            )
        return target

    def _write(self, directory: int, files: Mapping[str, Content]) -> bool:
        try:
            return self._bring_about(directory, files)
        except OSError as error:
            raise could_not("write", self.directory, error) from error

    def _bring_about(self, directory: int, files: Mapping[str, Content]) -> bool:
        version = self._version(directory)
        self._refuse_foreign(directory, files)
        self._tidy(directory, version)
        changed = version is None or not self._holds(directory, version, files)
        if changed:
            self._switch(directory, self._make(directory, files), version)
        changed |= self._point(directory, files)
        return changed

    def _refuse_foreign(self, directory: int, files: Mapping[str, Content]) -> None:
        for name in files:
            found = _look(directory, name)
            if found is None or _points_here(directory, name, found):
                continue
            if stat.S_ISDIR(found.st_mode):
                raise OutputError(
                    self.directory / name,
                    "is a directory: move it away, or choose another name for the file",
                )
            if not self._replace:
                raise OutputError(
                    self.directory / name,
                    "is there already and is not the agent's: move it away, choose another name, "
                    "or set 'replace: true' to have it replaced",
                )

    def _holds(self, directory: int, version: str, files: Mapping[str, Content]) -> bool:
        """Whether a version is exactly these files, with the right owners and permissions."""
        try:
            folder = os.open(version, _DIRECTORY, dir_fd=directory)
        except OSError:
            return False
        try:
            if not self._is_placed(folder) or set(os.listdir(folder)) != set(files):
                return False
            return all(
                has(folder, name, content, self._made.get(name)) for name, content in files.items()
            )
        except OSError:
            return False
        finally:
            os.close(folder)

    def _is_placed(self, folder: int) -> bool:
        found, group = os.fstat(folder), self._placement.group
        return stat.S_IMODE(found.st_mode) == self._placement.mode and group in (
            None,
            found.st_gid,
        )

    def _make(self, directory: int, files: Mapping[str, Content]) -> str:
        """Makes a version, complete and on the disk, that nothing points to yet."""
        mark = secrets.token_hex(8)
        unfinished, version = _UNFINISHED + mark, f"..meshmint-{mark}"
        os.mkdir(unfinished, 0o700, dir_fd=directory)
        try:
            folder = os.open(unfinished, _DIRECTORY, dir_fd=directory)
            try:
                for name, content in files.items():
                    self._put(folder, name, content)
                if self._placement.group is not None:
                    os.fchown(folder, -1, self._placement.group)
                os.fchmod(folder, self._placement.mode)
                os.fsync(folder)
                made = {name: (content, signature(folder, name)) for name, content in files.items()}
            finally:
                os.close(folder)
            os.rename(unfinished, version, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            _remove(directory, unfinished)
            raise
        os.fsync(directory)
        self._made = made
        return version

    def _put(self, folder: int, name: str, content: Content) -> None:
        try:
            put(folder, name, content)
        except OSError as error:
            raise could_not("write", self.directory / name, error) from error

    def _switch(self, directory: int, version: str, replaced: str | None) -> None:
        try:
            _point_to(directory, _DATA, version)
        except BaseException:
            _remove(directory, version)
            raise
        if replaced is not None:
            with suppress(FileNotFoundError):
                # From now on it is old.
                os.utime(replaced, dir_fd=directory, follow_symlinks=False)
        os.fsync(directory)

    def _point(self, directory: int, files: Mapping[str, Content]) -> bool:
        """Makes the visible names, and removes those that no longer lead anywhere."""
        changed = False
        for name in files:
            found = _look(directory, name)
            if found is None or not _points_here(directory, name, found):
                _point_to(directory, name, f"{_DATA}/{name}")
                changed = True
        for name in os.listdir(directory):
            if name in files or not _NAME.fullmatch(name):
                continue
            found = _look(directory, name)
            if found is not None and _points_here(directory, name, found):
                os.unlink(name, dir_fd=directory)
                changed = True
        if changed:
            os.fsync(directory)
        return changed

    def _tidy(self, directory: int, version: str | None) -> None:
        """Removes what a killed writer left, and versions that nobody reads any more."""
        old: list[tuple[float, str]] = []
        for name in os.listdir(directory):
            if name.startswith(_UNFINISHED):
                _remove(directory, name)
            elif _VERSION.fullmatch(name) and name != version:
                found = _look(directory, name)
                if found is not None:
                    old.append((found.st_mtime, name))
        now = time.time()
        old.sort(reverse=True)
        for place, (replaced_at, name) in enumerate(old):
            # A clock that was set back keeps nothing for longer, either.
            if place >= _KEEP_VERSIONS or not 0 <= now - replaced_at < _KEEP_SECONDS:
                _remove(directory, name)


def _read(directory: int, version: str) -> dict[str, bytes]:
    folder = os.open(version, _DIRECTORY, dir_fd=directory)
    try:
        found: dict[str, bytes] = {}
        for name in sorted(os.listdir(folder)):
            with suppress(PermissionError):
                found[name] = _read_file(folder, name)
        return found
    finally:
        os.close(folder)


def _read_file(folder: int, name: str) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=folder), "rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise OSError(errno.EFBIG, "a file larger than any of the agent's", name)
    return data


def _look(directory: int, name: str) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def _points_here(directory: int, name: str, found: os.stat_result) -> bool:
    return (
        stat.S_ISLNK(found.st_mode)
        and os.readlink(name, dir_fd=directory) == f"{_DATA}/{name}"
    )  # fmt: skip


def _point_to(directory: int, name: str, target: str) -> None:
    passing = _UNFINISHED + secrets.token_hex(8)
    os.symlink(target, passing, dir_fd=directory)
    try:
        os.rename(passing, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(passing, dir_fd=directory)
        raise


def _remove(directory: int, name: str) -> None:
    """Removes a version, or a link; what is gone already is no error."""
    with suppress(FileNotFoundError):
        found = os.lstat(name, dir_fd=directory)
        if not stat.S_ISDIR(found.st_mode):
            os.unlink(name, dir_fd=directory)
            return
        folder = os.open(name, _DIRECTORY, dir_fd=directory)
        try:
            for inner in os.listdir(folder):
                os.unlink(inner, dir_fd=folder)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=directory)
