"""Ties the life of a process to that of its parent, which then need not clean up after itself.

Linux alone offers this; elsewhere these calls do nothing.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

__all__ = ["end_with_supervisor", "signalled_at_end_of_parent"]

_PR_SET_PDEATHSIG = 1


def signalled_at_end_of_parent(number: int) -> None:
    """Has the kernel send this process a signal when its parent is gone, killed or not."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def end_with_supervisor() -> None:
    """A worker whose supervisor is killed is killed too, in whatever call it hangs.

    Nobody would end it at the drain's limit, and its ports would keep the next
    supervisor from starting. Who waits for an answer of it sends the request again.
    """
    signalled_at_end_of_parent(signal.SIGKILL)
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and os.getppid() != supervisor.pid:
        os._exit(1)  # it was gone before
