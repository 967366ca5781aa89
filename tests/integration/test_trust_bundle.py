"""The trust bundle as its readers get it: streams on every worker, and HTTPS in both profiles."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import http.client
import json
import shutil
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.rpc import error_details_pb2, status_pb2
from meshmint import AsyncClient, Client, RetryPolicy, TrustBundle
from meshmint.v1 import certificate_service_pb2 as pb
from support.service import (
    Service,
    ServiceFactory,
    free_port,
    make_root,
    sign_intermediate,
    timedelta,
)

WATCHERS = 4
OWN_LIFETIME = 16
SPIFFE_ID = "spiffe://mesh.example/meshmint/server"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers, a bundle endpoint with the service's own X509-SVID, little room."""
    service = Service(
        tmp_path_factory.mktemp("bundle"),
        max_watchers=WATCHERS,
        bundle_endpoint={
            "listen": f"127.0.0.1:{free_port()}",
            "profile": "https_spiffe",
            "path": "/bundle",
            "refresh_hint": "2m",
        },
        tls={
            "mode": "own",
            "dns_names": ["localhost"],
            "ip_addresses": ["127.0.0.1"],
            "lifetime": OWN_LIFETIME,
        },
    )
    service.start()
    try:
        until(lambda: service.whole_log().count("serving the bundle endpoint") >= 2)
        yield service
    finally:
        service.stop()


def until(holds: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def add_issuer(service: Service, *options: str) -> x509.Certificate:
    """One more issuer, under a root of its own, with the operators' commands."""
    name = f"issuer-{uuid.uuid4().hex[:6]}"
    csr_file, signed = (service.directory / f"{name}.{end}" for end in ("csr", "pem"))
    done = service.meshmintd(
        "ca", "csr", "-c", service.config_path, "--name", name, "--out", csr_file
    )
    assert done.returncode == 0, done.stdout + done.stderr
    key, root = make_root()
    intermediate = sign_intermediate(
        x509.load_pem_x509_csr(csr_file.read_bytes()), key, root, timedelta(days=300)
    )
    signed.write_bytes(intermediate.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    done = service.meshmintd("ca", "import", "-c", service.config_path, *options, signed)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def text(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


# --- WatchTrustBundle ----------------------------------------------------------------


@contextlib.contextmanager
def every_place_taken(service: Service) -> Iterator[list[Any]]:
    """Streams until every worker has as many as it may have: so each worker has some."""
    with contextlib.ExitStack() as stack:
        streams: list[Any] = []
        deadline = time.monotonic() + 30
        while len(streams) < WATCHERS * service.workers:
            assert time.monotonic() < deadline, f"only {len(streams)} streams came about"
            channel = stack.enter_context(service.new_channel())
            stub = service.stub_of(channel)
            stream = stub.WatchTrustBundle(pb.WatchTrustBundleRequest(), timeout=60)
            stack.callback(stream.cancel)
            with contextlib.suppress(grpc.RpcError):
                streams.append((next(stream), stream))
        yield streams


def watchers(service: Service) -> float:
    import urllib.request

    with urllib.request.urlopen(service.http_url + "/metrics", timeout=5) as response:  # noqa: S310
        for line in response.read().decode().splitlines():
            if line.startswith("meshmint_trust_bundle_watchers "):
                return float(line.split()[1])
    return 0


def test_every_watcher_of_every_worker_gets_a_new_root_within_seconds(running: Service) -> None:
    with every_place_taken(running) as streams:
        for present, _ in streams:
            assert text(running.root) in present.trust_bundle
            assert present.trust_domain == "mesh.example"
            assert present.refresh_hint.seconds == 120
        (before,) = {present.sequence for present, _ in streams}

        root = add_issuer(running, "--next")
        started = time.monotonic()
        for _, stream in streams:
            bundle = next(stream)
            while text(root) not in bundle.trust_bundle:  # the CSR's own revision
                bundle = next(stream)
            assert text(running.root) in bundle.trust_bundle
            assert bundle.sequence > before
        assert time.monotonic() - started < 3


def test_a_watcher_too_many_is_told_when_to_come_again(running: Service) -> None:
    until(lambda: watchers(running) == 0)
    with every_place_taken(running), running.new_channel() as channel:
        stream = running.stub_of(channel).WatchTrustBundle(pb.WatchTrustBundleRequest())
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)

        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        found = dict(caught.value.trailing_metadata())
        assert found["x-request-id"]
        kinds = {
            detail.type_url.rpartition(".")[2]
            for detail in status_pb2.Status.FromString(found["grpc-status-details-bin"]).details
        }
        assert kinds == {error_details_pb2.ErrorInfo.DESCRIPTOR.name, "RetryInfo"}
        assert watchers(running) == WATCHERS * running.workers
    # And those who left made room.
    until(lambda: watchers(running) == 0)


def test_unary_calls_work_beside_watchers_and_need_no_place(running: Service) -> None:
    with every_place_taken(running):
        assert running.stub.GetChain(pb.GetChainRequest(), timeout=10).chain


def test_draining_ends_streams_at_once_and_as_unavailable(service_factory: ServiceFactory) -> None:
    with service_factory.start() as own:
        stream = own.stub.WatchTrustBundle(pb.WatchTrustBundleRequest())
        next(stream)
        started = time.monotonic()
        own.process.terminate()

        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "draining" in caught.value.details()
        own.process.wait(15)
        assert time.monotonic() - started < 10
        assert "bug" not in own.whole_log()


# --- the client ----------------------------------------------------------------------


def test_client_watches_through_the_loss_of_every_worker(running: Service, tmp_path: Path) -> None:
    until(lambda: watchers(running) == 0)
    with Client(running.address, root_certificates=running.ca_file) as client:
        watch = client.watch_trust_bundle()
        first = next(watch)
        assert first.trust_domain == "mesh.example"
        assert running.root in first.trust_bundle
        assert first.refresh_hint.total_seconds() == 120
        before = running.worker_pids()
        running.restart_workers()

        root = add_issuer(running, "--next")
        while root not in (bundle := next(watch)).trust_bundle:
            assert bundle.sequence > first.sequence
        running.wait_until_ready(without=before)
        watch.close()

    path = bundle.write_file(tmp_path / "out" / "bundle.pem")
    assert x509.load_pem_x509_certificates(path.read_bytes()) == list(bundle.trust_bundle)
    assert path.stat().st_mode & 0o777 == 0o644


async def test_async_client_watches_and_ends_when_it_is_closed(running: Service) -> None:
    retry = RetryPolicy(max_attempts=8)
    client = AsyncClient(running.address, root_certificates=running.ca_file, retry=retry)
    seen: list[TrustBundle] = []
    news = asyncio.Event()

    async def follow() -> None:
        async for bundle in client.watch_trust_bundle():
            seen.append(bundle)
            news.set()

    following = asyncio.create_task(follow())
    await asyncio.wait_for(news.wait(), 20)
    root = await asyncio.to_thread(add_issuer, running, "--next")
    async with asyncio.timeout(10):
        while root not in seen[-1].trust_bundle:
            news.clear()
            await news.wait()
    await client.close()

    await asyncio.wait_for(following, 5)
    assert [one.sequence for one in seen] == sorted({one.sequence for one in seen})


# --- the bundle endpoint -------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    server: x509.Certificate


def ask(
    service: Service,
    method: str = "GET",
    path: str = "/bundle",
    *,
    by_name: bool = False,
    headers: dict[str, str] | None = None,
) -> Answer:
    """One verified HTTPS request on a connection of its own, without a client certificate."""
    context = ssl.create_default_context(cafile=str(service.ca_file))
    context.check_hostname = by_name
    host, port = service.config["bundle_endpoint"]["listen"].split(":")
    connection = http.client.HTTPSConnection(
        "localhost" if by_name else host, int(port), timeout=10, context=context
    )
    with contextlib.closing(connection):
        connection.connect()
        der = connection.sock.getpeercert(binary_form=True)
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read(), x509.load_der_x509_certificate(der))


def test_https_spiffe_shows_the_services_own_svid_and_the_bundle(running: Service) -> None:
    answer = ask(running)

    names = answer.server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [SPIFFE_ID]
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "public, max-age=120"
    document = json.loads(answer.body)
    ders = [base64.b64decode(key["x5c"][0]) for key in document["keys"]]
    assert running.root.public_bytes(Encoding.DER) in ders
    stream = running.stub.WatchTrustBundle(pb.WatchTrustBundleRequest())
    bundle = next(stream)
    stream.cancel()
    assert document["spiffe_sequence"] == bundle.sequence
    assert document["spiffe_refresh_hint"] == 120
    assert [text(x509.load_der_x509_certificate(der)) for der in ders] == list(bundle.trust_bundle)


def test_own_svid_is_renewed_without_a_restart(running: Service) -> None:
    pids = running.worker_pids()
    ends = [ask(running).server.not_valid_after_utc.timestamp() for _ in range(6)]
    time.sleep(max(ends) + 1 - time.time())

    # Each handshake is verified: an expired certificate would end it.
    later = [ask(running).server.not_valid_after_utc.timestamp() for _ in range(6)]

    assert min(later) > max(ends)
    assert running.worker_pids() == pids


def test_unchanged_bundle_is_not_sent_again_by_any_worker(running: Service) -> None:
    tag = ask(running).headers["etag"]

    for sent in (tag, f'"other", W/{tag}', "*"):
        for _ in range(4):
            answer = ask(running, headers={"If-None-Match": sent})
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["etag"] == tag
            assert answer.headers["cache-control"] == "public, max-age=120"
    assert ask(running, headers={"If-None-Match": '"other"'}).status == 200

    add_issuer(running, "--next")
    until(lambda: ask(running, headers={"If-None-Match": tag}).status == 200, 3)


def test_head_is_answered_and_everything_else_refused(running: Service) -> None:
    head = ask(running, "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) > 0

    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refused = ask(running, method)
        assert refused.status == 405
        assert set(refused.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert ask(running, path="/metrics").status == 404


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_later_are_spoken(running: Service, version: ssl.TLSVersion) -> None:
    import socket

    host, port = running.config["bundle_endpoint"]["listen"].split(":")
    context = ssl.create_default_context(cafile=str(running.ca_file))
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as secured,
    ):
        assert secured.version() == version.name.replace("v1_", "v1.")
    context.set_ciphers("ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    if version is ssl.TLSVersion.TLSv1_2:  # nothing without forward secrecy and AEAD
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            pytest.raises(ssl.SSLError),
        ):
            context.wrap_socket(plain, server_hostname="localhost")


def test_https_web_serves_files_and_follows_them(tmp_path: Path) -> None:
    service = Service(tmp_path / "web", workers=1)
    service.renew_tls_files()
    service.change_config(
        bundle_endpoint={
            "listen": f"127.0.0.1:{free_port()}",
            "profile": "https_web",
            "certificate": str(service.tls_certificate_file),
            "key": str(service.tls_key_file),
        }
    )
    service.start()
    try:
        until(lambda: "serving the bundle endpoint" in service.whole_log())
        first = ask(service, path="/", by_name=True)
        assert first.status == 200
        assert json.loads(first.body)["spiffe_refresh_hint"] == 300
        pids = service.worker_pids()

        # A certificate whose key has not come yet changes nothing.
        renewal = copy.copy(service)
        renewal.tls_certificate_file = tmp_path / "renewed.pem"
        renewal.tls_key_file = tmp_path / "renewed.key"
        renewal.renew_tls_files()
        expected = x509.load_pem_x509_certificate(renewal.tls_certificate_file.read_bytes())
        shutil.copy(renewal.tls_certificate_file, service.tls_certificate_file)
        until(lambda: "the old ones stay" in service.whole_log(), 5)
        assert ask(service, path="/", by_name=True).server == first.server

        shutil.copy(renewal.tls_key_file, service.tls_key_file)
        until(lambda: ask(service, path="/", by_name=True).server == expected, 5)
        assert service.worker_pids() == pids
    finally:
        service.stop()


def test_port_of_the_bundle_endpoint_cannot_be_shared_by_accident(running: Service) -> None:
    """Another server, with the other ports free."""
    other = running.directory / "other.yaml"
    import yaml

    config = {
        **running.config,
        "listen": f"127.0.0.1:{free_port()}",
        "http": {"listen": f"127.0.0.1:{free_port()}"},
    }
    other.write_text(yaml.safe_dump(config))

    done = running.meshmintd("serve", "-c", other)

    assert done.returncode == 78
    assert "bundle_endpoint.listen" in done.stdout + done.stderr
