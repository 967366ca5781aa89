"""Reactions by themselves: real programs, real signals, a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

import pytest
from meshmint.agent.reactions import Change, Reaction, ReactionFailure, ReactionSettings, react
from pydantic import TypeAdapter
from support.server_ca import TestCa

SETTINGS: TypeAdapter[Any] = TypeAdapter(ReactionSettings)
CHANGE = Change(
    "web", "5d18", "spiffe://example.org/web", datetime(2026, 11, 25, 12, 0, tzinfo=UTC),
    (Path("/etc/web"), Path("/etc/other dir")), "version",
)  # fmt: skip


def reaction(**settings: Any) -> Reaction:
    return cast("Reaction", SETTINGS.validate_python({"attempts": 1} | settings))


def script(text: str, **settings: Any) -> Reaction:
    """A command that is a piece of shell."""
    return reaction(command=["/bin/sh", "-c", text], **settings)


async def failure_of(one: Reaction) -> str:
    (failure,) = await react([one], CHANGE)
    return failure.text


def is_alive(number: int) -> bool:
    """Whether a process runs; one that nobody has collected yet does not."""
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


async def until(condition: Any) -> None:
    """Waits, generously."""
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        await asyncio.sleep(0.02)


class TestCommand:
    """A program."""

    async def test_it_gets_its_arguments_as_they_are_and_a_clean_environment(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MESHMINT_TOKEN", "secret")
        monkeypatch.setenv("STORE_PASSWORD", "secret")
        out = tmp_path / "out"
        code = (
            "import json, os, sys\n"
            "with open(sys.argv[1], 'w') as out:\n"
            "    json.dump([sys.argv[2:], dict(os.environ), os.getcwd()], out)\n"
        )
        command = [sys.executable, "-S", "-c", code, str(out), "$HOME; *", "", "a b"]

        assert await react([reaction(command=command, environment={"COLOUR": "red"})], CHANGE) == []

        arguments, environment, folder = json.loads(out.read_text())
        assert arguments == ["$HOME; *", "", "a b"]
        assert folder == "/"
        for name in ("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ"):
            environment.pop(name, None)
        assert environment == {
            "COLOUR": "red",
            "MESHMINT_NAME": "web",
            "MESHMINT_SERIAL": "5d18",
            "MESHMINT_SPIFFE_ID": "spiffe://example.org/web",
            "MESHMINT_NOT_AFTER": "2026-11-25T12:00:00Z",
            "MESHMINT_DIRECTORY": "/etc/web\n/etc/other dir",
        }

    async def test_its_failure_tells_status_and_last_words_and_no_more(self) -> None:
        text = await failure_of(
            script("printf 'x%.0s' $(seq 9000); printf '\\033[31mno\\nway' >&2; exit 3")
        )

        assert text.startswith("it ended with status 3; it said: …xxx")
        assert text.endswith("x\N{REPLACEMENT CHARACTER}[31mno way")
        assert len(text) < 600
        assert await failure_of(script("kill -9 $$")) == "it ended with signal 9; it said nothing"

    async def test_one_that_talks_without_end_is_read_and_not_kept(self) -> None:
        assert await react([script("head -c 3000000 /dev/zero")], CHANGE) == []

    @pytest.mark.parametrize(
        ("command", "told"),
        [
            (["/nowhere/at-all"], "there is no program '/nowhere/at-all': give its whole path"),
            (["/etc/passwd"], "may not run '/etc/passwd': make it executable"),
        ],
    )
    async def test_one_that_cannot_be_run_says_what_to_do(
        self, command: list[str], told: str
    ) -> None:
        assert told in await failure_of(reaction(command=command))

    async def test_time_out_kills_the_whole_group(self, tmp_path: Path) -> None:
        # Neither the program nor its child ends when it is asked to.
        stubborn = (
            "trap '' TERM; (trap '' TERM; echo $$ > child; while :; do sleep 1; done) & "
            "echo $! >> pids; echo $$ >> pids; echo deaf; while :; do sleep 1; done"
        )
        text = await failure_of(script(f"cd {tmp_path}; {stubborn}", timeout="1s"))

        assert "did not end within 1 s and was killed" in text
        assert text.endswith("it said: deaf")
        numbers = [int(line) for line in (tmp_path / "pids").read_text().split()]
        assert len(numbers) == 2
        await until(lambda: not any(is_alive(number) for number in numbers))

    async def test_what_it_leaves_running_does_not_hold_it_up(self, tmp_path: Path) -> None:
        assert await react([script(f"sleep 600 & echo $! > {tmp_path}/pid")], CHANGE) == []
        number = int((tmp_path / "pid").read_text())
        try:
            assert is_alive(number)
        finally:
            os.kill(number, signal.SIGKILL)

    async def test_who_stops_waiting_ends_it(self, tmp_path: Path) -> None:
        task = asyncio.create_task(
            react([script(f"echo $$ > {tmp_path}/pid; sleep 600; exit 1")], CHANGE)
        )
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        number = int((tmp_path / "pid").read_text())
        await until(lambda: not is_alive(number))

    async def test_it_is_tried_again_as_often_as_it_says(self, tmp_path: Path) -> None:
        count = f"echo x >> {tmp_path}/tries; "
        (failure,) = await react([script(count + "false", attempts=3)], CHANGE)
        assert failure.attempts == 3
        assert (tmp_path / "tries").read_text().count("x") == 3
        assert "the command /bin/sh failed after a change of web: it ended with status 1" in str(
            failure
        )

        until_third = count + f"test $(wc -l < {tmp_path}/tries) -ge 5"
        assert await react([script(until_third, attempts=3)], CHANGE) == []
        assert (tmp_path / "tries").read_text().count("x") == 5

    async def test_one_that_fails_does_not_keep_others_from_being_done(
        self, tmp_path: Path
    ) -> None:
        failures = await react([script("false"), script(f"touch {tmp_path}/done")], CHANGE)
        assert len(failures) == 1
        assert (tmp_path / "done").exists()


LISTENER = """
import signal, sys
signal.signal(signal.SIGHUP, lambda *_: print("HUP", flush=True))
print("ready", flush=True)
while True:
    signal.pause()
"""


class TestSignal:
    """A signal to whom a file names."""

    @pytest.fixture
    def listener(self) -> Iterator[subprocess.Popen[str]]:
        with subprocess.Popen(
            [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            yield process
            process.kill()

    @pytest.fixture
    def pid_file(self, tmp_path: Path, listener: subprocess.Popen[str]) -> Path:
        path = tmp_path / "pid"
        path.write_text(f"{listener.pid}\n")
        return path

    @pytest.mark.parametrize("form", ["none", "name", "path"])
    async def test_it_reaches_the_process(
        self, listener: subprocess.Popen[str], pid_file: Path, form: str
    ) -> None:
        program = os.path.realpath(sys.executable)
        executable = {"none": None, "name": os.path.basename(program), "path": program}[form]
        one = reaction(signal="HUP", pid_file=pid_file, executable=executable)

        assert await react([one], CHANGE) == []

        assert listener.stdout
        assert listener.stdout.readline() == "HUP\n"

    async def test_of_another_users_process_the_name_is_enough(
        self, listener: subprocess.Popen[str], pid_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # An agent with CAP_KILL and without CAP_SYS_PTRACE, as the systemd unit advises.
        def refuse(path: str) -> str:
            raise PermissionError(errno.EACCES, "Permission denied", path)

        monkeypatch.setattr(os, "readlink", refuse)
        wrong = reaction(signal="TERM", pid_file=pid_file, executable="nginx")
        assert "and not nginx: the file with its number is old" in await failure_of(wrong)
        name = Path(f"/proc/{listener.pid}/comm").read_text().strip()
        for executable in (name, f"/usr/bin/{name}"):
            one = reaction(signal="HUP", pid_file=pid_file, executable=executable)
            assert await react([one], CHANGE) == []
            assert listener.stdout
            assert listener.stdout.readline() == "HUP\n"

    async def test_another_program_with_that_number_is_left_alone(
        self, listener: subprocess.Popen[str], pid_file: Path
    ) -> None:
        text = await failure_of(reaction(signal="TERM", pid_file=pid_file, executable="nginx"))
        assert "and not nginx: the file with its number is old" in text
        assert listener.poll() is None

    async def test_a_process_that_has_ended_is_said(
        self, listener: subprocess.Popen[str], pid_file: Path
    ) -> None:
        listener.kill()
        listener.wait()
        text = await failure_of(reaction(signal="HUP", pid_file=pid_file))
        assert f"there is no process {listener.pid}" in text

    @pytest.mark.parametrize(
        "content", [b"", b"nginx", b"0", b"-1", b"1 2", b"12\x00", b"9" * 10, b"1" * 100, b"\xb2"]
    )
    async def test_a_file_that_holds_no_number_signals_nobody(
        self, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "pid").write_bytes(content)
        text = await failure_of(reaction(signal="HUP", pid_file=tmp_path / "pid"))
        assert "does not hold the number of a process" in text

    async def test_nobody_else_can_have_any_process_signalled(
        self, listener: subprocess.Popen[str], pid_file: Path
    ) -> None:
        one = reaction(signal="TERM", pid_file=pid_file)
        pid_file.chmod(0o666)
        assert "may be written by everyone" in await failure_of(one)
        pid_file.chmod(0o644)
        if os.geteuid() == 0:  # who is not cannot give a file away
            os.chown(pid_file, 65534, -1)
            told = f"belongs to user 65534, and process {listener.pid} does not run as that"
            assert told in await failure_of(one)
        assert listener.poll() is None

    async def test_a_file_that_is_not_there_is_said(self, tmp_path: Path) -> None:
        text = await failure_of(reaction(signal="HUP", pid_file=tmp_path / "none"))
        assert text.startswith(f"there is no {tmp_path}/none: start the program")


class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Keeps what it is asked, and answers as the test says."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.hangs = threading.Event()
        self.address = f"127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def answer(self) -> None:
        server = cast("Server", self.server)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        server.asked.append((self.command, self.path, dict(self.headers), body))
        if server.hangs.is_set():
            time.sleep(60)
        status, text = server.answers.pop(0) if server.answers else (200, b"")
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET = do_PUT = answer  # noqa: N815 - as the base class calls it

    def log_message(self, *_: Any) -> None:
        """Silence."""


@contextlib.contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    with Server(tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class TestHttp:
    """An HTTP call."""

    async def test_it_says_what_it_is_told_to(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("Bearer abc\n")
        with serving() as server:
            one = reaction(
                http=f"http://{server.address}/reload?all=1",
                method="PUT",
                headers={"Content-Type": "text/plain"},
                header_files={"Authorization": tmp_path / "token"},
                body="now",
            )
            assert await react([one], CHANGE) == []
            ((method, path, headers, body),) = server.asked
        assert (method, path, body) == ("PUT", "/reload?all=1", b"now")
        assert headers["Authorization"] == "Bearer abc"
        assert headers["Content-Type"] == "text/plain"

    async def test_another_status_is_a_failure_that_tells_what_was_said(self) -> None:
        with serving() as server:
            server.answers = [(503, b"not\x1b now" + b"x" * 99_999), (202, b""), (302, b"")]
            one = reaction(http=f"http://{server.address}/")
            text = await failure_of(one)
            assert text.startswith("the answer was 503, and 200 to 299 was expected; it said: …xxx")
            assert len(text) < 600
            assert "202, and 200 or 204 was expected" in await failure_of(
                reaction(http=f"http://{server.address}/", expected_status=[200, 204])
            )
            assert "the answer was 302" in await failure_of(one)
            assert [path for _, path, _, _ in server.asked] == ["/", "/", "/"]

    async def test_it_is_tried_again(self) -> None:
        with serving() as server:
            server.answers = [(500, b""), (200, b"")]
            assert (
                await react([reaction(http=f"http://{server.address}/", attempts=2)], CHANGE) == []
            )
            assert len(server.asked) == 2

    async def test_a_server_that_does_not_answer_is_not_waited_for(self) -> None:
        with serving() as server:
            server.hangs.set()
            text = await failure_of(reaction(http=f"http://{server.address}/", timeout=0.3))
        assert text == "there was no answer within 0.3 s"

    async def test_the_server_must_be_the_one_that_is_meant(self, tmp_path: Path) -> None:
        ca, stranger = TestCa(tmp_path / "ca"), TestCa(tmp_path / "stranger")
        (tmp_path / "token").write_text("secret")
        with serving(ca.server_context()) as server:
            settings = {
                "http": f"https://{server.address}/",
                "header_files": {"Authorization": tmp_path / "token"},
            }
            assert await react([reaction(**settings, ca_file=ca.file)], CHANGE) == []
            for roots in (stranger.file, None):
                text = await failure_of(reaction(**settings, ca_file=roots))
                assert "CERTIFICATE_VERIFY_FAILED" in text
            assert len(server.asked) == 1
        empty = tmp_path / "empty"
        for content, told in ((None, "there is no"), ("", "holds no certificates in PEM")):
            if content is not None:
                empty.write_text(content)
            assert told in await failure_of(reaction(**settings, ca_file=empty))

    async def test_a_closed_port_is_said(self) -> None:
        with serving() as server:
            address = server.address
        text = await failure_of(reaction(http=f"http://{address}/"))
        assert text.startswith("there was no answer: ")

    @pytest.mark.parametrize("content", [None, b"", b"two\nlines", b"\xff", b"x" * 20_000])
    async def test_a_header_file_that_cannot_be_sent_is_said_and_not_shown(
        self, tmp_path: Path, content: bytes | None
    ) -> None:
        path = tmp_path / "token"
        if content is not None:
            path.write_bytes(content)
        with serving() as server:
            one = reaction(http=f"http://{server.address}/", header_files={"X-Token": path})
            text = await failure_of(one)
            assert text.startswith(f"{path} ")
            assert "lines" not in text.removeprefix(str(path)).replace("one line", "")
            assert not server.asked

    async def test_a_socket_can_be_called(self, tmp_path: Path) -> None:
        asked: list[bytes] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            await writer.drain()
            writer.close()

        path = f"/tmp/meshmint-test-{os.getpid()}.sock"
        async with await asyncio.start_unix_server(answer, path):
            one = reaction(http="http://agent/reload", unix_socket=path)
            assert await react([one], CHANGE) == []
        # From Python 3.13 on, asyncio has removed it.
        Path(path).unlink(missing_ok=True)
        assert asked[0].startswith(b"POST /reload HTTP/1.1\r\nHost: agent\r\n")


def test_a_failure_is_told_in_one_line() -> None:
    one = reaction(http="https://example.org/reload?secret=1")
    failure = ReactionFailure(one, ("web", "api"), 3, "there was no answer")
    assert str(failure) == (
        "the call POST https://example.org/reload failed after a change of web, api: "
        "there was no answer"
    )
