"""A program that signs: what it is given, and what becomes of one that does not behave."""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from meshmint_server.authority import UpstreamCommand
from meshmint_server.errors import Unavailable


def command(script: str, *arguments: str, seconds: float = 20) -> UpstreamCommand:
    return UpstreamCommand([sys.executable, "-c", script, *arguments], timedelta(seconds=seconds))


async def refusal(upstream: UpstreamCommand) -> str:
    with pytest.raises(Unavailable) as caught:
        await upstream.sign("a CSR")
    assert caught.value.reason == "UPSTREAM_FAILED"
    return caught.value.message


async def test_it_reads_the_csr_and_writes_the_certificates():
    upstream = command("import sys; print(sys.argv[1:], sys.stdin.read())", "$HOME", "; ls")
    assert await upstream.sign("a CSR") == b"['$HOME', '; ls'] a CSR\n"


async def test_it_sees_little_of_our_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MESHMINT_PIN", "1234")
    upstream = command("import os; print(*sorted(os.environ))")
    names = (await upstream.sign("")).decode().split()
    assert "MESHMINT_PIN" not in names
    assert "PATH" in names


async def test_its_own_words_are_told_and_no_more_than_a_line_of_them():
    script = "import sys; print('no such\\x1b[31m profile\\nsecond', file=sys.stderr); sys.exit(3)"
    assert await refusal(command(script)) == (
        r"The upstream's command ended with status 3: no such\x1b[31m profile."
    )
    script = "import sys; print('x' * 5000, file=sys.stderr); sys.exit(3)"
    assert len(await refusal(command(script))) < 400
    assert "nothing to standard error" in await refusal(command("raise SystemExit(1)"))


async def test_one_that_is_not_there_is_told():
    message = await refusal(UpstreamCommand(["/no/such/program"], timedelta(seconds=5)))
    assert "cannot be run" in message


async def test_one_that_ends_by_a_signal_is_told():
    message = await refusal(command("import os; os.kill(os.getpid(), 9)"))
    assert "ended by signal 9" in message


async def test_one_that_does_not_read_is_not_waited_for():
    upstream = command("print('certificate')")
    assert await upstream.sign("x" * 1_000_000) == b"certificate\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_one_that_writes_without_end_is_ended(stream: str):
    script = f"import sys\nwhile True: sys.{stream}.write('x' * 65536)"
    assert "wrote more than" in await refusal(command(script))


async def test_one_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path):
    child = tmp_path / "child"
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(600)"
    )
    assert "took longer than 2 s" in await refusal(command(script, seconds=2))
    pid = int(child.read_text())
    deadline = time.monotonic() + 20
    while _runs(pid):
        assert time.monotonic() < deadline, "its child is still there"
        time.sleep(0.02)  # noqa: ASYNC251


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (OSError, IndexError):
        return False


async def test_a_child_that_it_leaves_with_its_output_is_not_waited_for(tmp_path: Path):
    child = tmp_path / "child"
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "print('certificate')"
    )
    assert await command(script).sign("") == b"certificate\n"
    os.kill(int(child.read_text()), signal.SIGKILL)
