"""The agent's own directory: keys, certificates and bundles that outlive a restart.

Nobody else may look into it, and one agent at a time works in it. Each file is
replaced by one rename, so that a reader after a crash finds the old one or the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, ValidationError

from meshmint.agent.identities import Bundle
from meshmint.agent.kept import KeptCertificate, Unusable
from meshmint.errors import ConfigurationError
from meshmint.files import Content, write_set

__all__ = ["Bundles", "StateDirectory"]

_MAX_BYTES = 16 << 20


class _BundleDocument(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    roots: tuple[str, ...]
    jwt_keys: str
    sequence: int


class _BundlesDocument(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: int
    own: str
    bundles: dict[str, _BundleDocument]


Bundles = tuple[str, Mapping[str, Bundle]]
"""The service's own trust domain, and every bundle by trust domain."""


class StateDirectory:
    """The directory.

    Args:
        path: Made if it is missing, for its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self) -> None:
        """Refuses a directory that others may look into or change.

        Raises:
            ConfigurationError: The message says what to do.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise ConfigurationError(f"state_dir {self.path}: {error.strerror or error}") from error
        if not stat.S_ISDIR(found.st_mode):
            raise ConfigurationError(f"state_dir {self.path} is not a directory: choose another")
        if found.st_uid != os.geteuid():
            raise ConfigurationError(
                f"state_dir {self.path} belongs to user {found.st_uid}, and the agent runs as "
                f"user {os.geteuid()}: chown it, or run the agent as its owner"
            )
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise ConfigurationError(
                f"state_dir {self.path} is open to others, and will hold private keys: "
                f"chmod 0700 {self.path}"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory if need be, and keeps every other agent out of it.

        Raises:
            ConfigurationError: Another agent works in it, or it cannot be used.
        """
        self.check()
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(
                self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise ConfigurationError(
                f"state_dir {self.path} cannot be used: {error.strerror or error}"
            ) from error
        try:
            try:
                _lock(descriptor)
            except BlockingIOError as error:
                owner = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip()
                raise ConfigurationError(
                    f"another agent{f' (process {owner})' if owner.isdecimal() else ''} works in "
                    f"{self.path}: stop it first, or give this one a state_dir of its own"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether an agent works in it at this moment."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    # --- certificates ------------------------------------------------------------------

    def load(self, name: str) -> KeptCertificate | None:
        """The kept certificate of that name; None if there is none.

        Raises:
            Unusable: There is something else.
        """
        text = self._read(f"{name}.json", "certificates")
        return None if text is None else KeptCertificate.from_text(text)

    def save(self, name: str, kept: KeptCertificate) -> None:
        """Keeps it; on disk when this returns.

        Raises:
            OSError: It cannot be written.
        """
        self._write(f"{name}.json", kept.to_text(), "certificates")

    # --- bundles -----------------------------------------------------------------------

    def load_bundles(self) -> Bundles | None:
        """The bundles that were there last; None if there are none.

        Raises:
            Unusable: There is something else.
        """
        text = self._read("bundles.json")
        if text is None:
            return None
        try:
            document = _BundlesDocument.model_validate_json(text)
            bundles = {
                name: Bundle(
                    name,
                    tuple(x509.load_pem_x509_certificate(pem.encode("ascii")) for pem in one.roots),
                    one.jwt_keys.encode(),
                    one.sequence,
                )
                for name, one in document.bundles.items()
            }
        except ValidationError as error:
            raise Unusable("it is not what the agent writes, or only a part of it") from error
        except ValueError as error:
            raise Unusable("it cannot be parsed") from error
        if document.version != 1 or document.own not in bundles:
            raise Unusable("it is not what this agent writes")
        return document.own, bundles

    def save_bundles(self, bundles: Bundles) -> None:
        """Keeps them.

        Raises:
            OSError: They cannot be written.
        """
        own, by_name = bundles
        document = _BundlesDocument(
            version=1,
            own=own,
            bundles={
                name: _BundleDocument(
                    roots=tuple(r.public_bytes(Encoding.PEM).decode("ascii") for r in one.roots),
                    jwt_keys=one.jwt_keys.decode(),
                    sequence=one.sequence,
                )
                for name, one in by_name.items()
            },
        )
        self._write("bundles.json", document.model_dump_json(ensure_ascii=True))

    @property
    def reactions(self) -> Path:
        """The directory of what reactions were done."""
        return self.path / "reactions"

    # --- status ------------------------------------------------------------------------

    def save_status(self, text: str) -> None:
        """Keeps what `meshmint agent status` shows where there is no health port.

        Raises:
            OSError: It cannot be written.
        """
        self._write("status.json", text)

    def load_status(self) -> bytes | None:
        """What was kept last.

        Raises:
            Unusable: There is something else.
        """
        return self._read("status.json")

    # --- files -------------------------------------------------------------------------

    def _folder(self, name: str) -> Path:
        folder = self.path / name if name else self.path
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def _write(self, name: str, text: str, folder: str = "") -> None:
        write_set(self._folder(folder), {name: Content(text, is_private=True)})

    def _read(self, name: str, folder: str = "") -> bytes | None:
        path = self.path / folder / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            with open(descriptor, "rb") as file:
                text = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unusable(error.strerror or str(error)) from error
        if len(text) > _MAX_BYTES:
            raise Unusable(f"it has over {_MAX_BYTES >> 20} MiB")
        return text


def _lock(descriptor: int) -> None:
    # Whoever asks whether it is locked holds the lock itself for a moment.
    for _ in range(10):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
