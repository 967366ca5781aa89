"""What can go wrong with an output, said so that an operator knows what to do.

No text ever holds what was to be written.
"""

from __future__ import annotations

import errno
from pathlib import Path

__all__ = ["OutputError", "OutputInUse", "could_not"]

_ADVICE = {
    errno.EROFS: "the file system is mounted read-only: mount it for writing, or choose another",
    errno.ENOSPC: "the file system is full: make room; the agent tries again",
    errno.EDQUOT: "the disk quota is used up: make room; the agent tries again",
    errno.EFBIG: "the file is larger than the agent may write: raise its limit (ulimit -f)",
    errno.EACCES: "the agent may not: run it as a user who may, or change the permissions",
    errno.EPERM: "the agent may not: only root (CAP_CHOWN) gives files to others, and nobody writes"
    " to what is immutable",
    errno.EINVAL: "the file system does not take it; in a container, an owner may be unknown to its"
    " user namespace",
    errno.ENOTDIR: "a part of the path is not a directory: move it away",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ENOENT: "it, or a directory above it, is gone: something else removes it",
    errno.EMFILE: "the agent has too many files open: raise its limit (ulimit -n)",
}


class OutputError(Exception):
    """An output could not be written; what was there before is still there, whole.

    Attributes:
        path: What it is about.
        advice: What happened and what to do.
    """

    def __init__(self, path: str | Path, advice: str) -> None:
        super().__init__(f"{path}: {advice}")
        self.path = str(path)
        self.advice = advice


class OutputInUse(OutputError):
    """Another agent, or another output of this one, writes to the same place."""


def could_not(do: str, path: str | Path, error: OSError) -> OutputError:
    """Says what the system refused.

    Args:
        do: What was tried, such as "write".
        path: To what.
        error: What the system said.
    """
    reason = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return OutputError(path, f"cannot {do}: {reason}" + (f"; {advice}" if advice else ""))
