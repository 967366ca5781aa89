"""The agent has descriptors for all who connect to its sockets, and leaves no core file."""

from __future__ import annotations

import subprocess
import sys

import pytest

# As a shell or systemd starts it; then as many connections as an agent with 300 streams has.
CODE = """
import resource, socket
from meshmint.agent.limits import set_limits
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
if {sets}:
    set_limits()
pairs = [socket.socketpair() for _ in range(300)]
print(resource.getrlimit(resource.RLIMIT_CORE)[0])
"""


@pytest.mark.parametrize("sets", [True, False])
def test_hundreds_of_connections_leave_descriptors_and_a_crash_leaves_no_core(sets: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(sets=sets)], capture_output=True, text=True, check=False
    )
    if sets:
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    else:
        assert "Too many open files" in done.stderr
