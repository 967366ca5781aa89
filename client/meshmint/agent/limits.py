"""What the system lets the agent do: enough open descriptors, and no core file."""

from __future__ import annotations

import contextlib
import resource

__all__ = ["set_limits"]

# More than sockets with all their streams take; without end some systems mean a billion.
_DESCRIPTORS = 1 << 17


def set_limits() -> None:
    """Sets them, as far as the system allows."""
    # The usual 1,024 are taken by as many workloads, and then no file could be written.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    # It would hold every private key.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
