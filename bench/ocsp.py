"""How many OCSP answers a second come from the cache: `make bench-ocsp`.

Starts a real `meshmintd serve` (two workers, SoftHSM, SQLite), issues certificates, and has
h2load ask about them over HTTP/1.1, by GET (every certificate in turn) and by POST (one
of them), in several rounds that take turns with /healthz of the same server, so that
whatever else the machine does meets all alike. h2load runs on the same cores and takes
its part. It prints a table and writes docs/reference/ocsp.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cryptography import x509
from meshmint.v1 import certificate_service_pb2 as pb
from revoke import machine
from support.ocsp import get, get_url, post, request_for
from support.service import Service

RESULT = Path(__file__).parents[1] / "docs" / "reference" / "ocsp.json"
TARGET = 2_000
WORKERS = 2
CONNECTIONS = 32

_SUMMARY = re.compile(r"^finished in [0-9.]+m?s, ([0-9.]+) req/s", re.MULTILINE)


def main() -> int:
    """Measures, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each has its turn")
    parser.add_argument("--seconds", type=int, default=4, help="how long a turn is")
    parser.add_argument("--certificates", type=int, default=500, help="how many to ask about")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the result goes")
    options = parser.parse_args()
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="meshmint-ocsp-") as directory:
        rates = measure(Path(directory), options.rounds, options.seconds, options.certificates)
    medians = {what: statistics.median(found) for what, found in rates.items()}
    report = {
        "what": "OCSP answers a second from the cache, and the same server's /healthz, over "
        "HTTP/1.1; the client runs on the same cores",
        "command": "make bench-ocsp",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "workers": WORKERS,
        "connections": CONNECTIONS,
        "machine": {**machine(), "load_before": round(load_before, 2)},
        "versions": {name: version(name) for name in ("cryptography", "uvicorn", "starlette")},
        "target": TARGET,
        "rates": {
            what: {"median": round(medians[what]), "all": found} for what, found in rates.items()
        },
        "to_healthz": {
            what: round(medians[what] / medians["healthz"], 2) for what in ("get", "post")
        },
    }
    for what, median in medians.items():
        print(f"{what:10}{median:>10,.0f}/s{median / medians['healthz']:>8.2f} of /healthz")
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(directory: Path, rounds: int, seconds: int, count: int) -> dict[str, list[int]]:
    """Answers a second in each round, by what was asked for."""
    service = Service(directory / "service", workers=WORKERS)
    service.start()
    try:
        requests = issue(service, count)
        urls, body = directory / "urls", directory / "body"
        urls.write_text("".join(get_url(service.http_url, one) + "\n" for one in requests))
        body.write_bytes(requests[0])
        assert {get(service.http_url, one).outcome for one in requests[:10]} == {"good"}
        assert post(service.http_url, requests[0]).outcome == "good"
        turns: dict[str, tuple[object, ...]] = {
            "healthz": (service.http_url + "/healthz",),
            "get": ("-i", urls),
            "post": (
                "-d", body, "-H", "content-type: application/ocsp-request",
                service.http_url + "/ocsp",
            ),
        }  # fmt: skip
        for arguments in turns.values():
            load(seconds, *arguments)  # fills the caches of both workers
        rates: dict[str, list[int]] = {what: [] for what in turns}
        for _ in range(rounds):
            for what, arguments in turns.items():
                rates[what].append(load(seconds, *arguments))
        return rates
    finally:
        service.stop()


def issue(service: Service, count: int) -> list[bytes]:
    """OCSP requests about so many certificates."""
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    requests = []
    for _ in range(count):
        issued: Any = service.issue(pb.IssueRequest(role=role))
        leaf = x509.load_pem_x509_certificate(issued.certificate.encode())
        issuer = x509.load_pem_x509_certificate(issued.chain[0].encode())
        requests.append(request_for(issuer, leaf.serial_number))
    return requests


def load(seconds: int, *arguments: object) -> int:
    """Answers a second; every one has status 200, or this fails."""
    done = subprocess.run(
        ["h2load", "--h1", "-D", str(seconds), "-c", str(CONNECTIONS), *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = _SUMMARY.search(done.stdout)
    assert found is not None, done.stdout
    assert " 0 3xx, 0 4xx, 0 5xx" in done.stdout, done.stdout
    return round(float(found[1]))


if __name__ == "__main__":
    sys.exit(main())
