"""A real service that succeeds itself: with an upstream, on replicas, and after crashes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1 import certificate_service_pb2 as pb
from support import interrupted
from support.programs import program
from support.service import Service, ServiceFactory, make_root

EXTENSIONS = """\
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = URI:spiffe://mesh.example
"""


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)


def openssl_upstream(directory: Path) -> list[str]:
    """The command of a root of its own, in files, that signs with openssl for some years."""
    directory.mkdir()
    key, root = make_root()
    (directory / "root.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (directory / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))
    (directory / "issuer.cnf").write_text(EXTENSIONS)
    script = directory / "sign"
    script.write_text(
        "#!/bin/sh\nset -e\n"
        f"cd {directory}\n"
        f"{program('openssl')} x509 -req -in /dev/stdin -CA root.pem -CAkey root.key -days 3000 "
        "-set_serial 0x$(openssl rand -hex 16) -extfile issuer.cnf\ncat root.pem\n"
    )
    script.chmod(0o700)
    return [str(script)]


def states(service: Service) -> list[str]:
    rows = service.admin.ListIssuers(
        admin_pb.ListIssuersRequest(), timeout=10, metadata=service.admin_metadata
    ).issuers
    return [admin_pb.IssuerState.Name(row.state).removeprefix("ISSUER_STATE_") for row in rows]


def keys_in_token(service: Service) -> int:
    done = subprocess.run(
        [program("pkcs11-tool"), "--module", service.module, "--token-label", "meshmint",
         "--login", "--pin", "env:MESHMINT_TEST_PIN", "--list-objects", "--type", "privkey"],
        env=service.token_environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.count("Private Key Object")


def issuers_seen(service: Service, role: str) -> set[str]:
    """Who signs, on as many connections as it takes to meet every worker."""
    seen = set()
    for _ in range(6 * service.workers):
        with service.new_channel() as channel:
            answer = service.stub_of(channel).Issue(
                pb.IssueRequest(role=role), timeout=10, metadata=service.metadata(service.token())
            )
            seen.add(answer.chain[0])
    return seen


def metrics(service: Service) -> str:
    with urllib.request.urlopen(f"{service.http_url}/metrics", timeout=10) as response:  # noqa: S310
        return str(response.read().decode())


def test_with_an_upstream_replicas_succeed_themselves_and_never_refuse(
    service_factory: ServiceFactory, postgres_url: str, tmp_path: Path
) -> None:
    # The active issuer has 400 days, so its successor is due at once. That is below another
    # root, which has to be known for some seconds first.
    rotation = {
        "prepare_before": "1000d", "activate_before": "500d", "publish_for": "3s",
        "upstream": {"command": openssl_upstream(tmp_path / "upstream")},
    }  # fmt: skip
    with (
        service_factory.start(workers=2, store=postgres_url, rotation=rotation) as first,
        first.replica() as second,
    ):
        role = first.put_role({"spiffe": "own", "ttl": "1h"})
        old = (first.directory / "issuer-1.pem").read_text()
        # What the listeners show comes from the new issuer as well.
        with first.ca_file.open("a") as trusted:
            trusted.write((tmp_path / "upstream" / "root.pem").read_text())

        def has_moved(service: Service) -> bool:
            # Every call succeeds, before, at and after the switch.
            seen = issuers_seen(service, role)
            return len(seen) == 1 and old not in seen

        for one in (first, second):
            one.wait_until_everywhere(role)
            until(lambda one=one: has_moved(one))
        assert sorted(states(first)) == ["ACTIVE", "RETIRED"]
        assert keys_in_token(first) == 2


@pytest.fixture
def made(tmp_path: Path) -> Service:
    return Service(tmp_path / "service", workers=1)


def test_no_crash_between_two_steps_leaves_a_second_key(made: Service) -> None:
    def rotate(point: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, interrupted.__file__, point, "ca", "rotate", "-c", made.config_path],
            env=made.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    assert keys_in_token(made) == 1
    for point, keys in (
        ("reserved", 1), ("reserved", 1), ("made", 2), ("made", 2), ("reserved", 2), ("made", 2),
        ("written", 2), ("written", 2),
    ):  # fmt: skip
        done = rotate(point)
        if point != "written" or keys_in_token(made) != 2:
            assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        assert keys_in_token(made) == keys
    done = made.meshmintd("ca", "rotate", "-c", made.config_path)
    assert done.returncode == 0, done.stderr
    assert x509.load_pem_x509_csr(done.stdout.encode()).is_signature_valid
    assert keys_in_token(made) == 2


def test_an_upstream_that_fails_is_told_of_until_it_works(
    service_factory: ServiceFactory, tmp_path: Path
) -> None:
    failing = {"upstream": {"command": ["/bin/sh", "-c", "echo the vault is shut >&2; exit 1"]}}
    with service_factory.start(workers=1) as running:
        # As if it were about to end: the successor is due at once.
        running.change_config(rotation={**failing, "prepare_before": "1000d"})
        running.process.send_signal(signal.SIGHUP)

        def last_failure() -> str:
            try:
                return running.admin.GetRotation(
                    admin_pb.GetRotationRequest(), timeout=5, metadata=running.admin_metadata
                ).last_failure
            except grpc.RpcError:
                return ""  # between two workers

        until(lambda: "the vault is shut" in last_failure())
        assert states(running) == ["ACTIVE", "PENDING"]
        until(lambda: 'meshmint_rotation_step{step="import"} 1.0' in metrics(running))
        assert 'meshmint_rotation_failures_total{step="prepare"} 1.0' in metrics(running)
        done = running.meshmintd("ca", "rotate", "-c", running.config_path, "--status")
        assert "The last try failed" in done.stdout
        working = {"upstream": {"command": openssl_upstream(tmp_path / "upstream")}}
        running.change_config(rotation={**working, "prepare_before": "1000d"})
        running.process.send_signal(signal.SIGHUP)
        until(lambda: states(running) == ["ACTIVE", "NEXT"])
        assert keys_in_token(running) == 2
