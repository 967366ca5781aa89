"""Writing certificates and keys to files, as a set.

A private key must never be readable by others, not even for a moment, and a
reader must never see half a file. So every file is written under a name of its
own in the same directory, created with its final mode, flushed to the disk, and
only when all are there are they renamed into place, one right after the other.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BUNDLE_FILE", "CERTIFICATE_FILE", "CHAIN_FILE", "FULL_CHAIN_FILE", "KEY_FILE"]

CERTIFICATE_FILE = "cert.pem"
CHAIN_FILE = "chain.pem"
FULL_CHAIN_FILE = "fullchain.pem"
BUNDLE_FILE = "bundle.pem"
KEY_FILE = "key.pem"

PUBLIC_MODE = 0o644
PRIVATE_MODE = 0o600
# The key may be next to public files; the directory alone protects nothing that exists already.
_DIRECTORY_MODE = 0o700


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into one file.

    Attributes:
        text: The whole text.
        is_private: Whether only the owner may read it.
    """

    text: str
    is_private: bool = False


def write_set(directory: str | os.PathLike[str], contents: Mapping[str, Content]) -> list[Path]:
    """Writes all files or, if anything fails before the last step, none.

    Args:
        directory: Made if it is missing, for its owner alone.
        contents: By file name. Files that exist are replaced; a symbolic link
            is replaced itself, and never followed.

    Returns:
        The paths, in the order given.

    Raises:
        OSError: The directory or a file cannot be written.
    """
    folder = Path(directory)
    folder.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    with contextlib.ExitStack() as staged:
        renames = [
            (staged.enter_context(_staged(folder, name, content)), folder / name)
            for name, content in contents.items()
        ]
        for temporary, final in renames:
            temporary.replace(final)
    _flush_directory(folder)
    return [final for _, final in renames]


@contextlib.contextmanager
def _staged(folder: Path, name: str, content: Content) -> Iterator[Path]:
    """A finished file under a passing name, which is gone in the end."""
    temporary = folder / f".{name}.{secrets.token_hex(8)}"
    mode = PRIVATE_MODE if content.is_private else PUBLIC_MODE
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    descriptor = os.open(temporary, flags | getattr(os, "O_CLOEXEC", 0), mode)
    try:
        with open(descriptor, "w", encoding="ascii", newline="\n") as file:
            file.write(content.text)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _flush_directory(folder: Path) -> None:
    # Makes the renames themselves last; there is no such thing on Windows.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
