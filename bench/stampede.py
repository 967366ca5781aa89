"""What a stampede does to a service: `make bench-stampede`.

Starts a real `meshmintd serve` (two workers, SoftHSM, SQLite, admission as it comes), takes its
top rate with 64 requests in flight, and then has 20,000 come at once over 5,000 connections:
twice as many as it lets wait. Certificates a second, and memory, are looked at all the while.
h2load runs on the same cores, and 5,000 TLS handshakes take both ends' CPU time there: the
rate is told for the whole, and for what follows the last handshake. Beside it, how many requests
a second it refuses. It does all that several times over, prints the round in the middle, and
writes it to docs/reference/stampede.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from engine.services import serving
from meshmint.v1 import certificate_service_pb2 as pb
from peers.load import Call, Pressure, frame, measure
from peers.meshmint import Meshmint
from peers.processes import resident_bytes
from peers.workload import Work
from revoke import machine
from support.service import Service

RESULT = Path(__file__).parents[1] / "docs" / "reference" / "stampede.json"
WORKERS = 2
CONNECTIONS = 5_000
REQUESTS = 20_000
# Which certificates a second are to reach, to the top rate.
TARGET = 0.9

_SIGN = Work("sign", is_recorded=True)
_NO_ROLE = "a-role-that-is-not-there"
# A look at the metrics of all workers takes CPU time, too.
_SAMPLE_SECONDS = 2.0
_PATIENCE = 120.0
_COUNTED = re.compile(
    r'^meshmint_rpc_seconds_count\{code="([A-Z_]+)",rpc="CertificateService/Sign"\} (\S+)$',
    re.MULTILINE,
)
_FINISHED = re.compile(r"(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored")
_LAST_HANDSHAKE = re.compile(r"^time for connect: +\S+ +([0-9.]+)(us|ms|s) ", re.MULTILINE)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def main() -> int:
    """Measures, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--rounds", type=int, default=3, help="how often, an odd number")
    parser.add_argument("--seconds", type=float, default=6.0, help="for the top rate, each time")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result goes")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "what": "a stampede of requests for certificates (Sign, recorded) at a service",
        "command": "make bench-stampede",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "workers": WORKERS,
        "connections": options.connections,
        "requests": options.requests,
        "machine": {**machine(), "load_before": round(os.getloadavg()[0], 2)},
    }
    with (
        tempfile.TemporaryDirectory(prefix="meshmint-stampede-") as directory,
        serving(Path(directory) / "service", workers=WORKERS) as (service, server),
    ):
        rounds = [
            stampede(service, server, options, Path(directory)) for _ in range(options.rounds)
        ]
    rounds.sort(key=lambda one: one["goodput"]["to_top_rate"])
    report |= rounds[len(rounds) // 2]
    report["goodput_of_all_rounds"] = [one["goodput"] for one in rounds]
    for name in ("top_rate", "refusals", "handshake_seconds", "goodput", "answered", "memory_mib"):
        print(f"{name:12} {json.dumps(report[name])}")
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def stampede(
    service: Service, server: Meshmint, options: argparse.Namespace, directory: Path
) -> dict[str, Any]:
    """Top rate before and after, and what happened in between; then requests that are refused."""
    call, size = server.call(_SIGN), server.probe(_SIGN)
    busy = Pressure(16, 4)
    tops = [measure(call, size, busy, options.seconds, directory).rate]
    before = counts(service)
    memory_before = resident_bytes(server.pids)
    started = time.monotonic()
    with load(call, options, directory) as h2load:
        samples = [(0.0, 0, memory_before)]
        while h2load.poll() is None and time.monotonic() - started < _PATIENCE:
            time.sleep(_SAMPLE_SECONDS)
            ok = counts(service).get("OK", 0) - before.get("OK", 0)
            samples.append((time.monotonic() - started, ok, resident_bytes(server.pids)))
        h2load.kill()
        text = h2load.communicate()[0]
    finished, connected = _FINISHED.search(text), _LAST_HANDSHAKE.search(text)
    if finished is None or connected is None:
        raise SystemExit(f"h2load printed something else than its summary: {text}")
    answered = {
        code: count - before.get(code, 0)
        for code, count in counts(service).items()
        if count > before.get(code, 0)
    }
    done = int(finished[1])
    # gRPC refuses by itself what nobody has looked at: no code of ours counts those.
    answered["refused before anybody looked"] = done - sum(answered.values())
    tops.append(measure(call, size, busy, options.seconds, directory).rate)
    refused = replace(call, body=frame(pb.SignRequest(role=_NO_ROLE).SerializeToString()))
    refusals = measure(refused, 0, busy, options.seconds, directory).rate
    top = sum(tops) / len(tops)
    handshakes = float(connected[1]) * _SECONDS[connected[2]]
    whole = rate_between(samples, 0.0)
    afterwards = rate_between(samples, handshakes)
    return {
        "top_rate": [round(rate) for rate in tops],
        "refusals": round(refusals),
        "seconds": round(samples[-1][0], 1),
        "handshake_seconds": round(handshakes, 1),
        "goodput": {
            "rate": round(whole),
            "to_top_rate": round(whole / top, 2),
            "after_handshakes": round(afterwards),
            "after_handshakes_to_top_rate": round(afterwards / top, 2),
            "target": TARGET,
        },
        "answered": answered,
        "memory_mib": {
            "before": round(memory_before / 2**20),
            "highest": round(max(memory for _, _, memory in samples) / 2**20),
            "after": round(resident_bytes(server.pids) / 2**20),
        },
    }


def rate_between(samples: list[tuple[float, int, int]], start: float) -> float:
    """Certificates a second from a moment on, to the last one."""
    busy = [(at, ok) for at, ok, _ in samples if at >= start and 0 < ok < samples[-1][1]]
    (first_at, first_ok), (last_at, last_ok) = busy[0], busy[-1]
    return (last_ok - first_ok) / (last_at - first_at)


def load(call: Call, options: argparse.Namespace, directory: Path) -> subprocess.Popen[str]:
    """All requests at once: each connection has its share in flight from the start."""
    body = directory / "body"
    body.write_bytes(call.body)
    share = str(max(1, options.requests // options.connections))
    command = [
        "h2load", "-c", str(options.connections), "-m", share, "-n", str(options.requests),
        "-d", str(body),
    ]  # fmt: skip
    for name, value in call.headers:
        command += ["-H", f"{name}: {value}"]
    return subprocess.Popen(
        [*command, call.url], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def counts(service: Service) -> dict[str, int]:
    """How many Sign calls have ended, by code."""
    text = httpx.get(f"{service.http_url}/metrics", timeout=30).text
    return {code: int(float(count)) for code, count in _COUNTED.findall(text)}


if __name__ == "__main__":
    sys.exit(main())
