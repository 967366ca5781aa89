"""A file that may be replaced while the service runs, as mounted secrets are."""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["WatchedFile"]

MAX_BYTES = 1024 * 1024
# A file changed again within one tick of the file system's clock keeps its
# mtime; so young a file is simply read again.
RACY_NS = 100_000_000


class WatchedFile:
    """Reads a file again only when it has changed: mtime, ctime, inode or size."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._text = str(path)
        self._signature: tuple[int, ...] | None = None
        self._content: bytes | None = None

    def read(self) -> bytes:
        """The content: the very same object for as long as it does not change.

        Raises:
            OSError: It cannot be read, or is over 1 MiB.
        """
        signature = _signature(os.stat(self._text))
        if self._content is not None and signature == self._signature:
            return self._content
        with self.path.open("rb") as file:
            stat = os.fstat(file.fileno())
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise OSError(f"{self.path} is over {MAX_BYTES} bytes")
        is_young = abs(time.time_ns() - stat.st_mtime_ns) < RACY_NS
        self._signature = None if is_young else _signature(stat)
        if content != self._content:
            self._content = content
        return self._content


def _signature(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev, stat.st_size)
