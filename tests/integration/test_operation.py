"""The running service as operators see it: health, metrics, logs, signals, grpcurl."""

from __future__ import annotations

import concurrent.futures
import json
import re
import resource
import signal
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from meshmint.v1 import certificate_service_pb2 as pb
from support.csr import make_csr, pem
from support.load import load
from support.programs import program
from support.service import Service, ServiceFactory


def fetch(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:  # nobody listens, or the worker that did was killed
        return 0, ""


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits, generously: how long it takes is not what these tests are about."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_health_is_told_overall_and_per_service(service: Service) -> None:
    stub = health_pb2_grpc.HealthStub(service.channel)
    for name in ("", "meshmint.v1.CertificateService", "meshmint.v1.AdminService"):
        response = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_http_port_tells_health_readiness_and_metrics(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    issued = service.issue(pb.IssueRequest(role=role))
    with pytest.raises(grpc.RpcError):
        service.issue(pb.IssueRequest(role="nope"))

    assert fetch(service.http_url + "/healthz") == (200, "ok\n")
    assert fetch(service.http_url + "/readyz")[0] == 200
    status, metrics = fetch(service.http_url + "/metrics")

    assert status == 200
    assert re.search(
        r'meshmint_rpc_seconds_count\{code="OK",rpc="CertificateService/Issue"\} [1-9]', metrics
    )
    assert re.search(
        r'rpc_seconds_count\{code="PERMISSION_DENIED",rpc="CertificateService/Issue"\} [1-9]',
        metrics,
    )
    assert re.search(r'meshmint_signature_seconds_count\{outcome="signed"\} [1-9]', metrics)
    assert re.search(r'meshmint_store_seconds_count\{outcome="recorded"\} [1-9]', metrics)
    assert "meshmint_token_checks_total" in metrics
    assert f"meshmint_ready {service.workers}.0" in metrics
    assert "spiffe" not in metrics
    assert issued.serial_number not in metrics
    assert "system:serviceaccount" not in metrics


def test_each_decision_is_one_log_line_and_no_secret_is_in_it(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    token = service.token()
    service.new_log_lines()

    issued = service.issue(pb.IssueRequest(role=role), token=token)
    csr = pem(make_csr())
    service.sign(pb.SignRequest(role=role, csr_pem=csr), token=token)
    for bad in (
        pb.IssueRequest(role=role, names=pb.CertificateNames(dns_names=["evil.com"])),
        pb.IssueRequest(role="nope"),
    ):
        with pytest.raises(grpc.RpcError):
            service.issue(bad, token=token)
    with pytest.raises(grpc.RpcError):
        service.sign(pb.SignRequest(role=role, csr_pem="not a CSR"), token=token)
    expired = service.token(ttl=-60)
    with pytest.raises(grpc.RpcError):
        service.issue(pb.IssueRequest(role=role), token=expired)

    lines: list[dict[str, Any]] = []

    def all_written() -> bool:
        lines.extend(line for line in service.new_log_lines() if line.get("type") == "audit")
        return len(lines) >= 6

    wait_for(all_written)
    assert [line["decision"] for line in lines] == ["granted"] * 2 + ["refused"] * 4
    granted = lines[0]
    assert granted["serial"] == issued.serial_number
    assert granted["spiffe_id"] == issued.spiffe_id
    assert granted["names"] == [f"URI:{issued.spiffe_id}"]
    assert granted["caller"] == "system:serviceaccount:shop:cart"
    assert granted["authenticator"] == "cluster"
    assert granted["role"] == role
    assert granted["issuer"] == issued.issuer
    assert granted["not_after"]
    assert granted["time"]
    assert len({line["request_id"] for line in lines}) == 6
    assert [line["reason"] for line in lines[2:]] == [
        "POLICY_VIOLATED", "ROLE_DENIED", "INVALID_REQUEST", "CREDENTIAL_EXPIRED",
    ]  # fmt: skip
    everything = service.whole_log()
    assert "PRIVATE KEY" not in everything
    assert issued.private_key.splitlines()[1] not in everything
    assert service.pin not in everything
    for secret in (token, expired):
        for part in secret.split("."):
            assert part not in everything


def test_many_rpcs_at_once_are_all_signed_right(service: Service) -> None:
    """Eight threads with a channel each against workers whose token forbids two threads."""
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    service.wait_until_everywhere(role)
    already = len(service.list_records(role=role))
    csr = pem(make_csr())
    issuer = x509.load_pem_x509_certificate(
        service.stub.GetChain(pb.GetChainRequest(), timeout=10).chain[0].encode()
    )

    def hammer(_: int) -> set[str]:
        serials = set()
        with service.new_channel() as channel:
            stub = service.stub_of(channel)
            metadata = service.metadata(service.token())
            pending = [
                stub.Sign.future(
                    pb.SignRequest(role=role, csr_pem=csr), timeout=60, metadata=metadata
                )
                for _ in range(100)
            ]
            for future in pending:
                response = future.result()
                certificate = x509.load_pem_x509_certificate(response.certificate.encode())
                certificate.verify_directly_issued_by(issuer)
                serials.add(response.serial_number)
        return serials

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        serials = set().union(*pool.map(hammer, range(8)))
    assert len(serials) == 800
    assert len(service.list_records(role=role)) - already == 800


def test_grpcurl_finds_its_way_without_a_proto_file(service: Service) -> None:
    def grpcurl(*arguments: str) -> str:
        return subprocess.run(
            [program("grpcurl"), "-cacert", service.ca_file, *arguments],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip

    listed = grpcurl(service.address, "list")
    assert "meshmint.v1.CertificateService" in listed
    assert "grpc.health.v1.Health" in listed
    assert "rpc Sign" in grpcurl(service.address, "describe", "meshmint.v1.CertificateService")
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    service.wait_until_everywhere(role)  # grpcurl has a connection of its own
    answer = json.loads(
        grpcurl(
            "-H", f"authorization: Bearer {service.token()}",
            "-d", json.dumps({"role": role, "validity": {"ttl": "600s"}}),
            service.address, "meshmint.v1.CertificateService/Issue",
        )
    )  # fmt: skip
    shown = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName"],
        input=answer["certificate"], capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert f"URI:spiffe://{service.trust_domain}/ns/shop/sa/cart" in shown


def test_sigterm_lets_requests_in_flight_end(service_factory: ServiceFactory) -> None:
    with service_factory.start() as service:
        role = service.put_role({"spiffe": "own", "key_type": "any"})
        slow = [
            service.stub.Issue.future(
                pb.IssueRequest(role=role, key_algorithm=pb.KEY_ALGORITHM_RSA_4096),
                timeout=30,
                metadata=service.metadata(service.token()),
            )
            for _ in range(4)
        ]

        def all_arrived() -> bool:
            in_flight = re.search(
                r"^meshmint_rpcs_in_flight ([0-9]+)", fetch(service.http_url + "/metrics")[1], re.M
            )
            assert in_flight
            return int(in_flight[1]) + sum(future.done() for future in slow) >= len(slow)

        wait_for(all_arrived)
        service.process.send_signal(signal.SIGTERM)
        assert all(future.result().certificate for future in slow)
        assert service.process.wait(30) == 0


def test_dead_worker_is_replaced(service_factory: ServiceFactory) -> None:
    with service_factory.start() as service:
        role = service.put_role({"spiffe": "own", "key_type": "ec"})
        victims = service.worker_pids()
        wait_for(lambda: len(leaders(service)) == 1)
        for pid in victims:
            service.kill_worker(pid)
        service.wait_until_ready(without=victims)
        assert service.issue(pb.IssueRequest(role=role)).certificate
        wait_for(lambda: len(leaders(service)) == 2)
        assert leaders(service)[1] not in victims


def test_workers_take_all_the_open_files_that_they_may_have(
    service_factory: ServiceFactory,
) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with service_factory.start() as service:
        (victim,) = service.worker_pids()
        # What a shell gives, as the supervisor hands it on to the next worker.
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (512, before[1]))
        service.kill_worker(victim)
        service.wait_until_ready(without={victim})
        (worker,) = service.worker_pids()
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    assert soft == (65_536 if hard == resource.RLIM_INFINITY else min(hard, 65_536)) > 512


def leaders(service: Service) -> list[int]:
    """The workers that took over the upkeep, in order."""
    event = "this worker has taken over the upkeep"
    return [line["pid"] for line in service.log_lines() if line.get("event") == event]


def test_upkeep_moves_to_another_replica_when_its_own_ends(
    service_factory: ServiceFactory, postgres_url: str
) -> None:
    with service_factory.start(store=postgres_url, workers=1) as first:
        wait_for(lambda: len(leaders(first)) == 1)
        with first.replica() as second:
            assert leaders(second) == []
            first.stop()
            wait_for(lambda: len(leaders(second)) == 1)


def longest_leaf(service: Service) -> float:
    """Seconds that certificates of the issuer may live, as the store has it."""
    with closing(sqlite3.connect(service.directory / "meshmint.db")) as connection:
        (microseconds,) = connection.execute("SELECT longest_leaf FROM issuers").fetchone()
    return float(microseconds / 1e6)


def test_sighup_takes_a_new_configuration_without_a_failed_request(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start() as service:
        role = service.put_role({"spiffe": "own", "key_type": "ec", "ttl": "2h"})
        before = service.worker_pids()
        with load([service], role) as running:
            service.change_config(max_ttl="1h", default_ttl="1h")
            service.process.send_signal(signal.SIGHUP)
            service.wait_until_ready(without=before)
            wait_for(lambda: not service.worker_pids() & before)
            running.more()
        assert running.failures == []
        with service.new_channel() as channel:
            response = service.stub_of(channel).Issue(
                pb.IssueRequest(role=role), timeout=60, metadata=service.metadata(service.token())
            )
        lifetime = response.not_after.seconds - response.not_before.seconds
        assert lifetime <= 3600 + 60


def test_broken_configuration_at_sighup_keeps_the_old_one(service_factory: ServiceFactory) -> None:
    with service_factory.start() as service:
        before = service.worker_pids()
        service.change_config(nonsense=True)
        service.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "nonsense" in service.whole_log())
        assert service.worker_pids() == before
        assert service.stub.GetChain(pb.GetChainRequest(), timeout=10).chain


def test_the_log_warns_once_of_clusters_with_the_same_spiffe_ids(tmp_path: Path) -> None:
    service = Service(tmp_path / "service", workers=2)
    (one,) = yaml.safe_load(service.config_path.read_text())["authenticators"]
    service.change_config(
        authenticators=[one, {**one, "name": "west", "issuer": "https://west.example"}]
    )
    service.start()
    try:
        told = [line for line in service.log_lines() if line["event"] == "odd configuration"]
    finally:
        service.stop()
    assert len(told) == 1
    assert "make SPIFFE IDs by the same template" in told[0]["problem"]
    assert "'spiffe_id' of its own" in told[0]["advice"]


def test_second_server_on_the_same_port_is_refused(service_factory: ServiceFactory) -> None:
    with service_factory.start() as service:
        second = service.run_second()
        assert second.returncode == 78
        assert "cannot listen" in second.stdout + second.stderr


def test_service_renews_its_own_certificate_without_a_restart(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start(tls={"mode": "own", "lifetime": "6s"}) as service:
        first = service.served_serial()
        wait_for(lambda: service.served_serial() != first)


def test_readiness_and_answers_tell_the_truth_when_the_token_is_gone(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start() as service:
        role = service.put_role({"spiffe": "own", "key_type": "ec"})
        before = service.worker_pids()
        service.hide_token()
        service.restart_workers()
        wait_for(lambda: fetch(service.http_url + "/readyz")[0] == 503)
        service.show_token()
        wait_for(lambda: fetch(service.http_url + "/readyz")[0] == 200)
        service.wait_until_ready(without=before)
        assert service.issue(pb.IssueRequest(role=role)).certificate


def test_issuer_that_would_expire_first_does_not_sign(service_factory: ServiceFactory) -> None:
    with service_factory.start(issuer_lifetime_seconds=3600) as service:
        role = service.put_role({"spiffe": "own", "key_type": "ec", "ttl": "2h"})
        with pytest.raises(grpc.RpcError) as caught:
            service.issue(pb.IssueRequest(role=role))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert service.list_records(role=role) == []


def test_two_replicas_share_one_postgresql(
    service_factory: ServiceFactory, postgres_url: str
) -> None:
    with service_factory.start(store=postgres_url) as first:
        role = first.put_role({"spiffe": "own", "key_type": "ec"})
        with first.replica() as second:
            mine = first.issue(pb.IssueRequest(role=role))
            theirs = second.issue(pb.IssueRequest(role=role))
            assert {record.serial_number for record in first.list_records(role=role)} == {
                mine.serial_number,
                theirs.serial_number,
            }
            changed = second.put_role({"spiffe": "own", "key_type": "ec"})
            first.wait_until_everywhere(changed)
            assert first.issue(pb.IssueRequest(role=changed)).role == changed


def test_certificate_files_are_taken_up_when_they_change(service_factory: ServiceFactory) -> None:
    with service_factory.start_with_tls_files() as service:
        first = service.served_serial()
        service.renew_tls_files()
        assert service.served_serial() != first
        assert service.stub.GetChain(pb.GetChainRequest(), timeout=10).chain
