"""The one directory that a development service lives in.

Everything is made with the modes that it would need in earnest: the directory
is its owner's alone, and so is every secret in it. Deleting the directory is
how one starts over.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from meshmint_server.cli.terminal import Failure

__all__ = ["StateDirectory", "write_file"]

_LOCK: Final = "lock"


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Where things are. Paths are absolute: they are pasted into other terminals.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration of the service; written anew at every start."""
        return self.path / "config.yaml"

    @property
    def roles(self) -> Path:
        """The first roles; written and applied once."""
        return self.path / "roles.yaml"

    @property
    def root_certificate(self) -> Path:
        """The development root: what clients trust."""
        return self.path / "root.pem"

    @property
    def root_key(self) -> Path:
        """The development root's key. In earnest it would be offline."""
        return self.path / "root-key.pem"

    @property
    def database(self) -> Path:
        """Records, roles and issuers."""
        return self.path / "meshmint.db"

    @property
    def softhsm(self) -> Path:
        """SoftHSM's configuration and tokens."""
        return self.path / "softhsm"

    @property
    def pin(self) -> Path:
        """The token's PIN."""
        return self.path / "pin"

    @property
    def file_keys(self) -> Path:
        """Encrypted key files, where there is no SoftHSM."""
        return self.path / "keys"

    @property
    def passphrase(self) -> Path:
        """What the key files are encrypted with."""
        return self.path / "passphrase"

    @property
    def issuer_key(self) -> Path:
        """The key of the development token issuer."""
        return self.path / "token-issuer-key.pem"

    @property
    def jwks(self) -> Path:
        """Its public half, as a cluster publishes it."""
        return self.path / "jwks.json"

    @property
    def tokens(self) -> Path:
        """Tokens of service accounts."""
        return self.path / "tokens"

    @property
    def svid(self) -> Path:
        """The X509-SVID that was got as a proof."""
        return self.path / "svid"

    @property
    def log(self) -> Path:
        """What the service logged since its start."""
        return self.path / "meshmintd.log"

    @classmethod
    def make(cls, path: Path) -> StateDirectory:
        """The directory, made if it is not there.

        Raises:
            Failure: It cannot be made or written, or others could write to it.
        """
        path = Path(os.path.abspath(path))
        try:
            if path.is_dir() and any(path.iterdir()) and not (path / _LOCK).exists():
                # Its mode is about to be changed, and files written: not in somebody's home.
                raise Failure(
                    f"{path} holds other things; choose a directory of its own with --state"
                )
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
        except OSError as error:
            raise Failure(
                f"{path}: cannot keep state here: {error.strerror}; choose another with --state"
            ) from error
        return cls(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other development services out of the directory.

        Raises:
            Failure: One is in it.
        """
        with (self.path / _LOCK).open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "unknown"
                raise Failure(
                    f"{self.path} is in use by another `meshmintd dev` (process {owner}); "
                    "end it, or choose another directory with --state"
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield

    def secret(self, path: Path, length: int) -> str:
        """The random secret in that file, made at the first time."""
        if not path.exists():
            write_file(path, secrets.token_urlsafe(length)[:length] + "\n", mode=0o600)
        return path.read_text(encoding="ascii").strip()


def write_file(path: Path, content: str | bytes, *, mode: int) -> None:
    """Writes a file whole or not at all, readable as its mode says from the first byte on."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
