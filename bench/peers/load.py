"""Load from h2load (nghttp2), and what it measured.

h2load counts HTTP status codes, and a gRPC refusal has 200 like any other answer: it
shows in its size, as a refusal has no certificate in it.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

__all__ = [
    "BadRun",
    "Call",
    "Measured",
    "Pressure",
    "check_summary",
    "frame",
    "grpc_call",
    "measure",
    "read_log",
    "read_stream_log",
]

# Signatures vary by a few bytes; a refusal is shorter by far.
_SIZE_TOLERANCE: Final = 0.05
# Over many items they even out, and framing hardly counts.
_STREAM_SIZE_TOLERANCE: Final = 0.004
# For what ends after so many requests.
_PATIENCE: Final = 150
_REQUESTS: Final = re.compile(
    r"^requests: \d+ total, (?P<started>\d+) started, (?P<done>\d+) done, "
    r"(?P<succeeded>\d+) succeeded, (?P<failed>\d+) failed, "
    r"(?P<errored>\d+) errored, (?P<timeout>\d+) timeout$",
    re.MULTILINE,
)
_DATA: Final = re.compile(r"^traffic: .* \((?P<data>\d+)\) data$", re.MULTILINE)


class BadRun(Exception):
    """The run measured something else than was meant; the message says what."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request to repeat: a POST of ``body``.

    Attributes:
        items: How many certificates it asks for; over one only if it is a stream.
    """

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    items: int = 1


@dataclass(frozen=True, slots=True)
class Pressure:
    """How hard to ask.

    Attributes:
        connections: Open all the time.
        streams: The most requests in flight on each.
        rate: Requests per second over all connections; None: the next one follows each answer.
        requests: How many in all, and then all of the run counts; None: as many as the time
            allows. For those that take so long that a run holds few of them.
        settling: Seconds; what ends earlier is not looked at: connections are made and caches
            filled then.
    """

    connections: int
    streams: int
    rate: float | None = None
    requests: int | None = None
    settling: float = 0.3


@dataclass(frozen=True, slots=True)
class Measured:
    """One run.

    Attributes:
        answers: Certificates in all answers, those before it settled too.
        rate: Certificates per second after it settled.
        p50: Median latency of a request, seconds; of a stream: until its last answer.
        p99: 99th percentile of it, seconds.
    """

    answers: int
    rate: float
    p50: float
    p99: float


def frame(message: bytes) -> bytes:
    """A message as gRPC sends it: not compressed, length in four bytes, then itself.

    Source: gRPC over HTTP2, Length-Prefixed-Message.
    """
    return b"\0" + len(message).to_bytes(4, "big") + message


def grpc_call(address: str, method: str, token: str, body: bytes, items: int = 1) -> Call:
    """A gRPC request as it is on the wire.

    Args:
        address: Host and port.
        method: Service and method, ``package.Service/Method``.
        token: The caller's.
        body: Its messages, framed.
        items: How many certificates it asks for.
    """
    headers = (
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", f"Bearer {token}"),
    )
    return Call(f"https://{address}/{method}", headers, body, items)


def measure(
    call: Call, answer_bytes: int, pressure: Pressure, seconds: float, directory: Path
) -> Measured:
    """Runs h2load.

    Args:
        call: What is asked.
        answer_bytes: The size of a good answer's body; 0 where refusals are what is measured.
        pressure: How hard.
        seconds: For how long, unless the number of requests is given.
        directory: Where it puts its files.

    Raises:
        BadRun: A request failed or was refused, or the output is not h2load's.
    """
    body, log = directory / "body", directory / "h2load.tsv"
    body.write_bytes(call.body)
    log.unlink(missing_ok=True)
    command = [
        "h2load", "-c", str(pressure.connections), "-m", str(pressure.streams),
        "-d", str(body), f"--log-file={log}",
    ]  # fmt: skip
    if pressure.requests is None:
        command += ["-D", f"{seconds * 1000:.0f}ms"]
    else:
        command += ["-n", str(pressure.requests)]
    if pressure.rate is not None:
        command.append(f"--rps={pressure.rate / pressure.connections:.3f}")
    for name, value in call.headers:
        command += ["-H", f"{name}: {value}"]
    done = subprocess.run(
        [*command, call.url], capture_output=True, text=True, check=False,
        timeout=seconds + _PATIENCE,
    )  # fmt: skip
    if done.returncode:
        raise BadRun(f"h2load ended with {done.returncode}: {done.stdout}{done.stderr}")
    check_summary(done.stdout, answer_bytes, call.items)
    text = log.read_text("ascii")
    if pressure.requests is not None:
        return read_log(text, call.items)
    if call.items > 1:
        return read_stream_log(text, call.items, pressure.connections * pressure.streams)
    return read_log(text, settling=pressure.settling)


def check_summary(text: str, answer_bytes: int, items: int = 1) -> None:
    """Checks from what h2load printed that every answer was a good one.

    Of streams that were cut off at the end, some answers have come: data may be that much
    more. So refusals may hide there, and are to be looked for elsewhere, too.

    Raises:
        BadRun: Requests failed, or their answers have not the size of good ones on average.
    """
    requests, data = _REQUESTS.search(text), _DATA.search(text)
    if requests is None or data is None:
        raise BadRun(f"h2load printed something else than its summary: {text}")
    counts = {name: int(count) for name, count in requests.groupdict().items()}
    if counts["failed"] or counts["errored"] or counts["timeout"]:
        raise BadRun(f"requests failed: {requests[0]}")
    if not counts["done"] or counts["succeeded"] != counts["done"]:
        raise BadRun(f"requests without a good answer: {requests[0]}")
    mean = int(data["data"]) / counts["done"]
    most, tolerance = 1.0, _SIZE_TOLERANCE
    if items > 1:
        most, tolerance = counts["started"] / counts["done"], _STREAM_SIZE_TOLERANCE
    if not (1 - tolerance) * answer_bytes <= mean <= (most + tolerance) * answer_bytes:
        raise BadRun(f"answers have {mean:.0f} bytes in place of {answer_bytes}: no certificates")


def read_log(text: str, items: int = 1, settling: float = 0) -> Measured:
    """Rate and latencies, from the lines of ``--log-file``: start, status, duration.

    Args:
        text: The lines.
        items: How many certificates each answer holds.
        settling: Seconds from the first request on; what ends earlier is not looked at.

    Raises:
        BadRun: An answer has another status than 200, or nothing was answered in time.
    """
    rows = [tuple(map(int, line.split("\t")[:3])) for line in text.splitlines()]
    refused = sum(status != 200 for _, status, _ in rows)
    if refused:
        raise BadRun(f"{refused} of {len(rows)} answers are not 200")
    if not rows:
        raise BadRun("nothing was answered")
    settled = min(start for start, _, _ in rows) + settling * 1e6
    last = max(start + duration for start, _, duration in rows)
    durations = sorted(duration for start, _, duration in rows if start + duration > settled)
    if not durations:
        raise BadRun(f"all {len(rows)} answers came within the first {settling} seconds")
    return Measured(
        answers=len(rows) * items,
        rate=len(durations) * items / (last - settled) * 1e6,
        p50=_percentile(durations, 50) / 1e6,
        p99=_percentile(durations, 99) / 1e6,
    )


def read_stream_log(text: str, items: int, in_flight: int) -> Measured:
    """The same for streams, of which a run holds too few to count those within a time.

    As many are in flight all the time, so that the rate is that number divided by how long
    one takes (Little's law); what is under way at the end does not count, on either side.

    Raises:
        BadRun: As above, or there are less than two for each that is in flight.
    """
    measured = read_log(text, items)
    durations = [int(line.split("\t")[2]) for line in text.splitlines()]
    if len(durations) < 2 * in_flight:
        raise BadRun(f"{len(durations)} streams in a run are too few, with {in_flight} in flight")
    return replace(measured, rate=in_flight * items / statistics.mean(durations) * 1e6)


def _percentile(ordered: list[int], percent: int) -> int:
    """The least value that so many percent are not above (nearest rank)."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]
