"""An output whose disk is full or read-only keeps what it had, says so, and goes on later.

The disk is a small file system of its own, mounted where nobody else sees it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import support.held
from meshmint.agent.outputs import AtomicSet

# Gives what follows a file system of its own, which goes when that ends.
_SMALL_DISK = """
mount -t tmpfs -o size=128k,mode=0700 meshmint-test "$1"
shift
exec "$@"
"""

_WRITES = """
import os, subprocess, sys
from contextlib import suppress
from pathlib import Path
from meshmint.agent.outputs import AtomicSet, Content, Output, OutputError, TemplateOutput

disk = Path(sys.argv[1])
tls = AtomicSet(disk / "tls")
first = {"key.pem": Content(b"1" * 9000), "cert.pem": Content(b"1" * 9000)}
second = {name: Content(b"2" * 9000) for name in first}
other = Output(TemplateOutput(template="{{ certificates }}" + "x" * 9000, destination=disk / "f"))

def attempt(what):
    try:
        print("changed", what())
    except OutputError as error:
        print(error)
    assert not list((disk / "tls").glob("..meshmint-new-*"))
    assert not list(disk.glob(".f.meshmint-[0-9a-f]*"))
    assert len(set(b"".join(tls.read().values()))) == 1, "one set, whole"
    print("holds", tls.read()["key.pem"][:1].decode())

attempt(lambda: tls.write(first))
(disk / "..").resolve()
with open(disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
    while True:
        filler.write(bytes(4096))
attempt(lambda: tls.write(second))
attempt(lambda: other.write_all([], {}))
os.unlink(disk / "filler")
attempt(lambda: tls.write(second))
subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
attempt(lambda: tls.write(first))
attempt(lambda: other.write_all([], {}))
subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
attempt(lambda: tls.write(first))
"""


def on_a_small_disk(directory: Path, *command: str | Path) -> str:
    """Runs a command that has a small disk at the directory, and gives back what it says."""
    found = shutil.which("unshare")
    if found is None:
        pytest.fail("'unshare' is missing: install the system package util-linux")
    directory.mkdir()
    alone = [found, "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    done = subprocess.run(
        [*alone, "sh", "-ec", _SMALL_DISK, "sh", directory, *command],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(support.held.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 0, f"a mount needs root or a user namespace: {done.stderr}"
    return done.stdout


def test_a_full_and_a_read_only_disk_leave_the_set_whole_and_are_said(tmp_path: Path) -> None:
    disk = tmp_path / "disk"

    said = on_a_small_disk(disk, sys.executable, "-c", _WRITES, disk).splitlines()

    full = "No space left on device; the file system is full: make room; the agent tries again"
    read_only = "cannot write: Read-only file system; the file system is mounted read-only"
    assert said[:2] == ["changed True", "holds 1"]
    assert said[2].startswith(f"{disk}/tls/")
    assert said[2].endswith(full)
    assert said[3] == "holds 1"
    assert said[4] == f"{disk}/f: cannot write: {full}"
    assert said[6:8] == ["changed True", "holds 2"]
    assert read_only.removeprefix("cannot write: ") in said[8]
    assert said[9] == "holds 2"
    assert read_only.removeprefix("cannot write: ") in said[10]
    assert said[12:] == ["changed True", "holds 1"]
    assert AtomicSet(disk).read() == {}, "nobody else has seen that disk"
