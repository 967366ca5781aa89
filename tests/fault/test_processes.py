"""Processes that are killed, hang or are replaced under load: nothing is lost, and work moves on.

The load is that of the public client. At the end every certificate that a client holds is on
record, nothing else is, and no serial number is there twice: so nothing was minted twice.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from meshmint import RetryPolicy
from meshmint.v1 import certificate_service_pb2 as pb
from support.crls import serials_of
from support.load import Load, load
from support.mesh import wait_until
from support.service import Service, ServiceFactory, is_running

ROLE = {"spiffe": "own", "key_type": "ec", "ttl": "10m"}
# For who must outlast a service that is away for as long as a machine takes to start it.
PATIENT = RetryPolicy(max_attempts=1000, max_delay=0.5)
# What a client hears of a call that its server did not live to answer.
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def check(running: Load, service: Service) -> None:
    """Nobody was refused, and what clients hold is on record, once, and nothing besides."""
    assert running.failures == []
    reconciled = running.reconcile(service)
    assert reconciled.held
    assert reconciled.unrecorded == frozenset()
    assert reconciled.unheard == frozenset()


def leads(service: Service) -> bool:
    """Whether a worker that runs now took the upkeep over."""
    event = "this worker has taken over the upkeep"
    return any(
        line["pid"] in service.worker_pids()
        for line in service.log_lines()
        if line.get("event") == event
    )


@contextmanager
def replicas(first: Service, number: int) -> Iterator[list[Service]]:
    """The first and further ones, on the same store."""
    with ExitStack() as stack:
        names = [f"replica-{index}" for index in range(1, number)]
        yield [first, *(stack.enter_context(first.replica(name)) for name in names)]


@contextmanager
def halfway(service: Service, role: str) -> Iterator[tuple[grpc.Future, threading.Event]]:
    """A request whose message has not been sent yet, but which the server has taken.

    Setting the event sends it. The answer is an IssueResponse, not parsed yet.
    """
    go_on = threading.Event()
    request = pb.IssueRequest(role=role).SerializeToString()
    metadata = service.metadata(service.token())

    def messages() -> Iterator[bytes]:
        go_on.wait()
        yield request

    with service.new_channel() as channel:
        issue = channel.stream_unary("/meshmint.v1.CertificateService/Issue")
        call = issue.future(messages(), timeout=100, metadata=metadata)
        # Taken in turn: with this one, the one before.
        service.stub_of(channel).Issue(pb.IssueRequest(role=role), timeout=30, metadata=metadata)
        try:
            yield call, go_on
        finally:
            go_on.set()


def test_killed_workers_cost_no_request(service_factory: ServiceFactory) -> None:
    with service_factory.start(workers=2) as service:
        role = service.put_role(ROLE)
        service.wait_until_everywhere(role)
        with load([service], role) as running:
            for victim in service.worker_pids():
                service.kill_worker(victim)
                running.more()
                service.wait_until_ready(without={victim})
            running.more()
        check(running, service)


def test_a_killed_supervisor_takes_all_its_processes_along_and_the_next_one_starts_at_once(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start(workers=2) as service:
        role = service.put_role(ROLE)
        service.wait_until_everywhere(role)
        # With a request that does not end: the workers would wait for it.
        with halfway(service, role), load([service], role, retry=PATIENT) as running:
            below = service.descendants()
            assert len(below) >= 2 * service.workers  # workers, and the processes that sign
            service.kill()
            service.start()  # no pause: its port must be free
            running.more()
            wait_until(lambda: not any(map(is_running, below)), "nothing of the first one runs")
        check(running, service)


def test_a_hanging_worker_does_not_outlive_its_supervisor(service_factory: ServiceFactory) -> None:
    with service_factory.start() as service:
        below = service.descendants()
        (worker,) = service.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        service.kill()
        try:
            wait_until(lambda: not any(map(is_running, below)), "nothing of the service runs")
        finally:
            if is_running(worker):  # the test has failed, and leaves nothing behind
                os.kill(worker, signal.SIGKILL)
        service.start()


def test_a_killed_replica_costs_no_request_and_its_upkeep_moves_on(
    service_factory: ServiceFactory, postgres_url: str
) -> None:
    with (
        service_factory.start(store=postgres_url) as first,
        replicas(first, 2) as both,
    ):
        role = first.put_role(ROLE)
        for service in both:
            service.wait_until_everywhere(role)
        wait_until(lambda: any(map(leads, both)), "one of them leads")
        (leader,) = filter(leads, both)
        (other,) = (service for service in both if service is not leader)
        with load(both, role) as running:
            leader.kill()
            running.more()
            wait_until(lambda: leads(other), "the other one leads")
            serial = running.newest()
            other.revoke(serial)
            # What only a leader does: a CRL that lists it.
            wait_until(lambda: int(serial, 16) in serials_of(other.crl()), "a CRL that lists it")
        check(running, other)


def test_a_rolling_restart_of_three_replicas_costs_no_request(
    service_factory: ServiceFactory, postgres_url: str
) -> None:
    with (
        service_factory.start(store=postgres_url) as first,
        replicas(first, 3) as all_three,
    ):
        role = first.put_role(ROLE)
        for service in all_three:
            service.wait_until_everywhere(role)
        with load(all_three, role) as running:
            for service in all_three:
                service.stop()
                assert service.process.returncode == 0
                running.more()
                service.start()
                running.more()
        check(running, first)
        wait_until(lambda: sum(map(leads, all_three)) == 1, "one of them leads")


def test_sigterm_answers_what_is_in_flight_and_refuses_what_is_new(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start() as service:
        role = service.put_role(ROLE)
        with halfway(service, role) as (call, go_on):
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not service.listens(), "the port is closed")
            with service.new_channel() as channel, pytest.raises(grpc.RpcError) as caught:
                service.stub_of(channel).Issue(
                    pb.IssueRequest(role=role),
                    timeout=30,
                    metadata=service.metadata(service.token()),
                )
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert service.process.poll() is None
            go_on.set()
            assert pb.IssueResponse.FromString(call.result(60)).certificate
        assert service.process.wait(60) == 0


@pytest.mark.parametrize("what", ["a request", "a worker"])
def test_sigterm_ends_at_its_limit_though_something_hangs(
    service_factory: ServiceFactory, what: str
) -> None:
    with service_factory.start(drain="1s") as service:
        role = service.put_role(ROLE)
        below = service.descendants()
        with halfway(service, role) as (call, _):
            if what == "a worker":
                (worker,) = service.worker_pids()
                os.kill(worker, signal.SIGSTOP)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 0
            with pytest.raises(grpc.RpcError) as caught:
                call.result(60)
            assert caught.value.code() in GONE
        wait_until(lambda: not any(map(is_running, below)), "nothing of it runs")


_HOLDS_METRICS = """
from meshmint_server import supervisor
import os, sys
with supervisor._metrics_directory():
    print(os.environ["PROMETHEUS_MULTIPROC_DIR"], flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_supervisor_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    def supervise() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _HOLDS_METRICS],
            env={**os.environ, "TMPDIR": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with supervise() as killed, supervise() as living:
        left, used = (Path(one.stdout.readline().strip()) for one in (killed, living))
        (left / "counter.db").write_bytes(b"")
        killed.kill()
        killed.wait(timeout=30)
        with supervise() as third:
            its = Path(third.stdout.readline().strip())
            assert set(tmp_path.iterdir()) == {used, its}
            third.communicate(timeout=30)
        living.communicate(timeout=30)
    assert list(tmp_path.iterdir()) == []
