"""A real PostgreSQL for tests: own directory, own unix socket, own process.

Started from the system's packages. A machine without them fails the tests that
need it and says which package is missing; it never skips them.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import asyncpg
import pytest

USER = "meshmint"
# The port only names the socket file: each server has a directory of its own.
PORT = 5432
# Tests may lose what a power cut would take.
_HASTY = ("fsync=off", "full_page_writes=off", "shared_buffers=32MB", "autovacuum=off")


def postgres_programs() -> Path:
    """Where the newest installed PostgreSQL keeps its programs."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3])
    )
    if found:
        return found[-1].parent
    pg_config = shutil.which("pg_config")
    if pg_config:
        listed = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=True)
        directory = Path(listed.stdout.strip())
        if (directory / "initdb").exists():
            return directory
    initdb = shutil.which("initdb")
    if initdb:
        return Path(initdb).resolve().parent
    pytest.fail(
        "PostgreSQL is missing, and these tests run against a real one: "
        "install the Debian package 'postgresql'.",
        pytrace=False,
    )


def _unprivileged() -> dict[str, int | list[int]]:
    # initdb and postgres refuse to run as root.
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    pytest.fail("there is no account 'postgres' or 'nobody' to run PostgreSQL as", pytrace=False)


class PostgresServer:
    """One PostgreSQL server, made and started by the constructor.

    Args:
        settings: Lines of its configuration beside the usual ones.
    """

    def __init__(self, settings: Sequence[str] = _HASTY) -> None:
        self._settings = settings
        self._programs = postgres_programs()
        self._account = _unprivileged()
        # Short: the path of a unix socket has at most 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="mmpg-", dir="/tmp"))
        if self._account:
            shutil.chown(self.directory, self._account["user"], self._account["group"])
        self._process: subprocess.Popen[bytes] | None = None
        try:
            how = ["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C.UTF-8"]
            self._run("initdb", "-D", f"{self.directory}/data", "-U", USER, *how)
            self.start()
        except BaseException:
            self.remove()
            raise

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            **self._account,
        )
        if done.returncode:
            pytest.fail(f"{program} failed:\n{done.stdout}{done.stderr}", pytrace=False)

    def start(self) -> None:
        """Starts the server and returns once it answers."""
        command = [
            str(self._programs / "postgres"), "-D", f"{self.directory}/data",
            "-k", str(self.directory), "-p", str(PORT), "-c", "listen_addresses=",
            "-c", "max_connections=60",
        ]  # fmt: skip
        for setting in self._settings:
            command += ["-c", setting]
        account = self._account
        setpriv = shutil.which("setpriv")
        if setpriv:
            # It changes the account, too: for that Python would have to fork, and handlers of
            # gRPC run in the child then, which may end it in the midst of calls.
            options = (
                [f"--reuid={account['user']}", f"--regid={account['group']}", "--clear-groups"]
                if account
                else []
            )
            # A test run that is killed must not leave a server behind.
            command = [setpriv, *options, "--pdeathsig=INT", "--", *command]
            account = {}
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdout=log, stderr=log, **account
            )
        ends = time.monotonic() + 30
        ready = [self._programs / "pg_isready", "-q", "-h", self.directory, "-p", str(PORT)]
        while subprocess.run(ready, check=False, capture_output=True).returncode:
            if self._process.poll() is not None or time.monotonic() > ends:
                log_text = (self.directory / "log").read_text(errors="replace")
                status = self._process.poll()
                pytest.fail(f"PostgreSQL does not start ({status}):\n{log_text}", pytrace=False)
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Ends the server: SIGINT ends sessions and shuts down, SIGQUIT drops everything."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def remove(self) -> None:
        """Ends the server and removes what it had."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, database: str) -> str:
        """The store URL of one database."""
        return f"postgresql://{USER}@/{database}?host={self.directory}&port={PORT}"

    async def create_database(self, name: str = "") -> str:
        """Makes an empty database and returns its name."""
        name = name or f"test_{secrets.token_hex(6)}"
        await self._execute(f"CREATE DATABASE {name}")
        return name

    async def drop_database(self, name: str) -> None:
        """Removes a database, whoever may still be connected."""
        await self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _execute(self, statement: str) -> None:
        connection = await asyncpg.connect(
            host=str(self.directory), port=PORT, user=USER, database="postgres"
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for each test process. Nobody stops it; tests that must, make their own."""
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture
async def postgres_url(postgres_server: PostgresServer) -> AsyncIterator[str]:
    """The store URL of an empty database of this test alone."""
    name = await postgres_server.create_database()
    yield postgres_server.url(name)
    await postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
async def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The store URL of an empty database: each test runs with SQLite and with PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/store.db"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = await server.create_database()
    yield server.url(name)
    await server.drop_database(name)
