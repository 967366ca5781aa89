"""The agent's own token: from a file, a command or the environment, asked for at each use."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import stat
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from meshmint import TokenUnavailable
from meshmint.agent import auth
from meshmint.agent.auth import token_expiry, token_source
from meshmint.agent.config import AuthSettings
from meshmint.tokens import Tokens
from support.service import is_running


async def token(**settings: Any) -> str:
    asked = token_source(AuthSettings(**settings))()
    return await asked if isinstance(asked, Awaitable) else asked


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - it is the affair of another process
            await asyncio.sleep(0.02)


def program(directory: Path, script: str) -> list[str]:
    path = directory / "program"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return [str(path)]


async def test_a_file_is_read_again_at_each_use(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    source = token_source(AuthSettings(token_file=path))
    assert source() == "first"
    path.write_text("second")
    assert source() == "second"
    path.write_text("")
    with pytest.raises(TokenUnavailable, match="is empty"):
        source()
    path.unlink()
    with pytest.raises(TokenUnavailable, match="cannot read"):
        source()


async def test_the_environment_is_asked_at_each_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_TOKEN", " first ")
    assert await token(environment="AGENT_TOKEN") == "first"
    monkeypatch.setenv("AGENT_TOKEN", "")
    with pytest.raises(TokenUnavailable, match="AGENT_TOKEN is not set, or empty"):
        await token(environment="AGENT_TOKEN")


async def test_a_command_prints_the_token(tmp_path: Path) -> None:
    assert await token(command=[*program(tmp_path, "echo made-of-$1"), "hand"]) == "made-of-hand"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("exit 3", "ended with status 3"),
        ("echo secret; exit 1", "ended with status 1"),
        ("true", "printed nothing"),
        ("head -c 100000 /dev/zero", "more than a token"),
        ("cat /dev/zero", "more than a token"),
    ],
)
async def test_a_command_that_fails_is_told_without_what_it_printed(
    tmp_path: Path, script: str, told: str
) -> None:
    with pytest.raises(TokenUnavailable, match=told) as caught:
        await token(command=program(tmp_path, script))
    assert "secret" not in str(caught.value)


async def test_a_command_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(TokenUnavailable, match="cannot be run: No such file"):
        await token(command=[str(tmp_path / "none")])


async def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! > {pids}; echo $$ >> {pids}; sleep 1000"
    with pytest.raises(TokenUnavailable, match=r"did not end within 0\.5 s, and was killed"):
        await token(command=program(tmp_path, script), command_timeout="500ms")
    give_up_at = time.monotonic() + 30
    while any(is_running(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < give_up_at
        await asyncio.sleep(0.05)


async def test_many_who_need_a_token_at_once_share_one_run_and_the_next_has_its_own(
    tmp_path: Path,
) -> None:
    runs = tmp_path / "runs"
    script = f"echo x >> {runs}; sleep 0.3; wc -l < {runs}"
    source = token_source(AuthSettings(command=tuple(program(tmp_path, script))))
    async with asyncio.TaskGroup() as group:
        asking = [group.create_task(Tokens.of(source).get_async()) for _ in range(50)]
    assert {task.result() for task in asking} == {"1"}
    assert await Tokens.of(source).get_async() == "2"


async def test_one_who_gives_up_ends_no_run_that_others_wait_for(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 0.5; echo token"
    source = token_source(AuthSettings(command=tuple(program(tmp_path, script))))
    first, second = (asyncio.create_task(Tokens.of(source).get_async()) for _ in range(2))
    await until(pid.exists)
    first.cancel()
    assert await second == "token"
    pid.unlink()
    # And one that nobody waits for is ended.
    alone = asyncio.create_task(Tokens.of(source).get_async())
    await until(pid.exists)
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    await until(lambda: not is_running(int(pid.read_text())))
    # What was told of its end must find the event loop.
    await until(lambda: len(asyncio.all_tasks()) == 1)


async def test_a_killed_program_is_gone_though_nobody_has_read_what_it_printed() -> None:
    process = await asyncio.create_subprocess_exec(
        "cat", "/dev/zero", stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    await asyncio.sleep(0.2)  # until its pipe is full, and asyncio's buffer
    os.killpg(process.pid, signal.SIGKILL)
    await auth._reap(process)
    assert process.returncode == -signal.SIGKILL
    assert process.stdout is not None
    assert process.stdout.at_eof()


async def test_a_command_gets_no_shell(tmp_path: Path) -> None:
    printed = await token(command=[*program(tmp_path, 'printf %s "$1"'), "$(id)"])
    assert printed == "$(id)"
    assert os.listdir(tmp_path) == ["program"]


def jwt_with(claims: object) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"e30.{body}.signature"


def test_the_expiry_of_a_jwt_is_found_and_nothing_else_is_guessed() -> None:
    assert token_expiry(jwt_with({"exp": 1893456000})) == datetime(2030, 1, 1, tzinfo=UTC)
    for odd in (jwt_with({}), jwt_with([]), jwt_with({"exp": "x"}), jwt_with({"exp": 1e300})):
        assert token_expiry(odd) is None
    for odd in ("", "a.b", "a.é.c", "a.!.c", "...", "e30." + "[" * 9000 + ".x"):
        assert token_expiry(odd) is None
