"""The agent and the client under measurement: started, watched, asked.

What a process uses is read from /proc, whose figures cost it nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from support.agent import AgentProcess
from support.service import TRUST_DOMAIN, Service

from agent.layout import LIFETIME_SECONDS, Connection, Layout

__all__ = ["Client", "MeasuredAgent", "Renewed", "Use"]

_PATIENCE_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.02
_QUIET_SECONDS: Final = 1.0
_TICKS: Final = os.sysconf("SC_CLK_TCK")
NEVER: Final = {"fraction": 0.9, "jitter": 0}


@dataclass(frozen=True, slots=True)
class Use:
    """What the agent's process uses at one moment.

    Attributes:
        memory: Resident, in MiB.
        most_memory: The most that it was so far.
        cpu: Seconds, since its start.
        descriptors: Open file descriptors.
        threads: Threads.
    """

    memory: float
    most_memory: float
    cpu: float
    descriptors: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Use:
        """Looks at a process."""
        proc = Path("/proc") / str(pid)
        status = proc.joinpath("status").read_text()
        fields = dict(re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE))
        # utime and stime: fields 14 and 15 of proc(5); the second one may hold anything.
        times = proc.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
        return cls(
            int(fields["VmRSS"]) / 1024,
            int(fields["VmHWM"]) / 1024,
            sum(map(int, times)) / _TICKS,
            sum(1 for _ in proc.joinpath("fd").iterdir()),
            int(fields["Threads"]),
        )


@dataclass(frozen=True, slots=True)
class Renewed:
    """What became of a renewal.

    Attributes:
        before: What the agent used right before it.
        serials: The new serial numbers, by certificate.
        times: When the agent had got each certificate, and published it.
    """

    before: Use
    serials: Mapping[str, str]
    times: Mapping[str, float]


class MeasuredAgent(AgentProcess):
    """One agent with a layout.

    Args:
        directory: Of its own.
        service: Which signs for it.
        layout: What it has to do.
    """

    def __init__(self, directory: Path, service: Service, layout: Layout) -> None:
        super().__init__(directory, service.address, service.ca_file)
        self.config["server"]["timeout"] = "60s"
        self.config["log"] = {"format": "json"}
        self.token_file.write_text(service.token())
        self._outputs = directory / "outputs"
        # Short: a socket's path has 107 bytes.
        self._sockets = directory / "run"
        self._sockets.mkdir(mode=0o700)
        self._renewals: Mapping[str, Any] = {"": NEVER}
        self.arrange(layout)

    def arrange(self, layout: Layout) -> None:
        """Has it do something else from its next start on."""
        self.layout = layout
        self.config["sockets"] = layout.socket_sections(self._sockets)
        self._write()

    def clients(self) -> Iterator[Connection]:
        """Who listens to it."""
        return self.layout.clients(self._sockets)

    def forget(self) -> None:
        """Removes all that it has kept and written."""
        for directory in (self.state, self._outputs):
            shutil.rmtree(directory, ignore_errors=True)

    def begin(self) -> float:
        """Starts it; seconds from starting the process until it says that it is ready."""
        began = time.monotonic()
        self.start()
        self._wait(self._is_ready)
        return time.monotonic() - began

    def use(self) -> Use:
        """What it uses now."""
        assert self.process is not None
        return Use.of(self.process.pid)

    def renew(self, names: Iterable[str], soon: float, settle: float) -> Renewed:
        """Has certificates renewed, all at one moment.

        Args:
            names: Which ones.
            soon: Seconds of their lifetime, after which they may be renewed: they must have passed,
                and do not pass again before `rest`, or the next call of this.
            settle: Seconds until that moment; what reading the configuration costs is then over.
        """
        moment = datetime.now(UTC) + timedelta(seconds=settle)
        renewal = {
            "fraction": soon / LIFETIME_SECONDS,
            "jitter": 0,
            "not_before": moment.isoformat(),
        }
        wanted = set(names)
        offset = self.log_path.stat().st_size
        self._reread({"": NEVER, **dict.fromkeys(wanted, renewal)})
        time.sleep(max(0.0, moment.timestamp() - time.time() - _LOOK_SECONDS))
        before = self.use()
        obtained: dict[str, tuple[str, float]] = {}

        def are_all_there() -> bool:
            for line in self._lines_since(offset, b"certificate obtained"):
                obtained.setdefault(line["certificate"], (line["serial"], _time(line)))
            return obtained.keys() >= wanted

        self._wait(are_all_there, soon)
        return Renewed(
            before,
            {name: serial for name, (serial, _) in obtained.items()},
            {name: at for name, (_, at) in obtained.items()},
        )

    def rest(self) -> None:
        """Has nothing renewed any more."""
        self._reread({"": NEVER})

    def take_root(self, add: Callable[[], Any]) -> float:
        """When it got the trust bundle with one root more, which something adds."""
        offset, before = self.log_path.stat().st_size, self._roots()
        add()
        found: list[float] = []

        def is_there() -> bool:
            for line in self._lines_since(offset, b"trust bundle"):
                if line["event"] == "trust bundle" and line["roots"] > before:
                    found.append(_time(line))
            return bool(found)

        self._wait(is_there)
        return found[0]

    def _roots(self) -> int:
        bundles = json.loads(self.get("/status")[1])["bundles"]
        return int(bundles[TRUST_DOMAIN]["roots"])

    def _reread(self, renewals: Mapping[str, Any]) -> None:
        offset = self.log_path.stat().st_size
        self._renewals = renewals
        self._write()
        self.reload()
        self._wait(lambda: any(self._lines_since(offset, b"configuration read again")))

    def _write(self) -> None:
        self.write_config(
            certificates=self.layout.certificate_sections(self._outputs, self._renewals)
        )

    def _is_ready(self) -> bool:
        host, _, port = str(self.config["health"]).partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    def _lines_since(self, offset: int, word: bytes) -> Iterator[dict[str, Any]]:
        """Whole lines of the log with a word in them, from an offset on."""
        with self.log_path.open("rb") as log:
            log.seek(offset)
            for line in log:
                if word in line and line.endswith(b"\n"):
                    with contextlib.suppress(ValueError):
                        yield json.loads(line)

    def _wait(self, is_so: Callable[[], bool], beside: float = 0.0) -> None:
        give_up_at = time.monotonic() + _PATIENCE_SECONDS + beside
        while not is_so():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(
                    "the agent ended, or does not get on; the end of its log:\n"
                    + self.log_path.read_text()[-4000:]
                )
            time.sleep(_LOOK_SECONDS)


def _time(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).timestamp()


class Client:
    """The process that holds the streams open.

    Attributes:
        opened_seconds: From opening all streams at once until each had read its first message.
    """

    def __init__(self, connections: Iterable[Connection]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent.streams"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        wanted = [
            {
                "path": one.path,
                "streams": [
                    {**asdict(stream), "watches": sorted(stream.watches)} for stream in one.streams
                ],
            }
            for one in connections
        ]
        self.opened_seconds = float(self._ask("open", connections=wanted)["seconds"])

    def forget(self) -> None:
        """Forgets what was read so far."""
        self._ask("forget")

    def read(self, marks: Mapping[str, str], after: float) -> dict[str, Any]:
        """When what is watched was read with a mark in it, once nothing comes any more.

        Args:
            marks: By what is watched.
            after: When the agent had the last of them.

        Raises:
            RuntimeError: A stream that watches has not been sent it.
        """
        self._ask("quiet", after=after, seconds=_QUIET_SECONDS)
        found = self._ask("read", marks=dict(marks))
        for watch, one in found["watched"].items():
            if one["read"] != one["streams"]:
                raise RuntimeError(f"{one['read']} of {one['streams']} streams read {watch}")
        return found

    def close(self) -> None:
        """Ends all streams, and the process."""
        self._process.communicate()

    def _ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([what, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the client has ended; its error is above")
        found: dict[str, Any] = json.loads(answer)
        return found
