"""Where a PIN or passphrase comes from: a file or the environment.

The secret itself is read when it is needed, never kept here, and never shown:
not in repr, not in an error. It has no place in a config file or on a command line.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from meshmint_server.keys.key import KeyFault
from meshmint_server.keys.uri import InvalidKeyUri

__all__ = ["SecretSource"]

_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class SecretSource:
    """A place to read a secret from: exactly one of a file and a variable.

    Attributes:
        purpose: What the secret is for, in messages: "PIN" or "passphrase".
    """

    purpose: str
    path: Path | None = None
    variable: str | None = None

    @classmethod
    def parse(cls, text: str, purpose: str) -> SecretSource:
        """Parse ``file:/absolute/path`` or ``env:NAME``.

        Raises:
            InvalidKeyUri: Neither; the text is not shown, in case it is the secret.
        """
        scheme, _, rest = text.partition(":")
        if scheme == "env" and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rest):
            return cls(purpose, variable=rest)
        if scheme == "file":
            path = Path(rest.removeprefix("//"))
            if path.is_absolute() and "\0" not in rest:
                return cls(purpose, path=path)
        raise InvalidKeyUri(
            f"The source of the {purpose} is 'file:/absolute/path' or 'env:NAME'; "
            f"the {purpose} itself must not stand there."
        )

    def read(self) -> str:
        """The secret, without a final line break.

        Raises:
            KeyFault: It is not there, is empty, or is not text.
        """
        if self.variable is not None:
            value = os.environ.get(self.variable, "")
        else:
            value = self._read_file()
        value = value.removesuffix("\n").removesuffix("\r")
        if not value:
            raise KeyFault(f"The {self.purpose} from {self} is empty.", reason="SECRET_UNREADABLE")
        return value

    def _read_file(self) -> str:
        if self.path is None:
            raise ValueError("a secret source without a place")
        try:
            with self.path.open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except OSError as error:
            reason = error.strerror or type(error).__name__
        else:
            try:
                if len(raw) <= _MAX_BYTES:
                    return raw.decode("utf-8")
                reason = f"longer than {_MAX_BYTES} bytes"
            except UnicodeDecodeError:
                reason = "not UTF-8 text"
        raise KeyFault(
            f"The {self.purpose} cannot be read from {self}: {reason}.", reason="SECRET_UNREADABLE"
        )

    def __str__(self) -> str:
        return f"env:{self.variable}" if self.variable is not None else f"file:{self.path}"
