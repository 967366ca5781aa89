"""Two services that federate with each other, and what their clients get of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint import AsyncClient, Client, JwtSvid, MeshmintError, NotFound
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.spiffe import TrustBundle, TrustDomain
from support import jwt_verifier
from support.service import Service, free_port, make_root, sign_intermediate

HERE, THERE = "mesh.example", "other.example"


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def bundle_file(path: Path, service: Service, name: str) -> str:
    """The first bundle, as one operator gives it to the other."""
    der = service.root.public_bytes(Encoding.DER)
    bundle = TrustBundle(TrustDomain(name), (der,), 0, timedelta(minutes=5))
    path.write_bytes(bundle.document)
    return str(path)


def add_root(service: Service) -> x509.Certificate:
    """Publishes one more root, with the operators' commands."""
    name = f"issuer-{uuid.uuid4().hex[:6]}"
    csr, signed = (service.directory / f"{name}.{end}" for end in ("csr", "pem"))
    done = service.meshmintd("ca", "csr", "-c", service.config_path, "--name", name, "--out", csr)
    assert done.returncode == 0, done.stdout + done.stderr
    key, root = make_root()
    intermediate = sign_intermediate(
        x509.load_pem_x509_csr(csr.read_bytes()), key, root, timedelta(days=300)
    )
    signed.write_bytes(intermediate.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    done = service.meshmintd("ca", "import", "-c", service.config_path, "--next", signed)
    assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Service]]:
    """`mesh.example` fetches by https_spiffe, `other.example` by https_web."""
    directory = tmp_path_factory.mktemp("federation")
    ports = free_port(), free_port()
    here = Service(
        directory / "here",
        bundle_endpoint={"listen": f"127.0.0.1:{ports[0]}", "refresh_hint": "1s"},
    )
    there = Service(
        directory / "there",
        workers=1,
        trust_domain=THERE,
        bundle_endpoint={"listen": f"127.0.0.1:{ports[1]}", "refresh_hint": "1s"},
    )
    here.renew_tls_files()
    here.change_config(
        bundle_endpoint={
            **here.config["bundle_endpoint"],
            "profile": "https_web",
            "certificate": str(here.tls_certificate_file),
            "key": str(here.tls_key_file),
        },
        federation=[
            {
                "trust_domain": THERE,
                "url": f"https://127.0.0.1:{ports[1]}/",
                "profile": "https_spiffe",
                "endpoint_spiffe_id": f"spiffe://{THERE}/meshmint/server",
                "bundle": bundle_file(directory / "there.json", there, THERE),
            },
            {
                "trust_domain": "never.example",
                "url": f"https://127.0.0.1:{free_port()}/",
                "profile": "https_web",
            },
        ],
    )
    there.change_config(
        jwt_svid={"enabled": True},
        federation=[
            {
                "trust_domain": HERE,
                "url": f"https://localhost:{ports[0]}/",
                "profile": "https_web",
                "ca": str(here.ca_file),
            }
        ],
    )
    here.start()
    try:
        there.start()
        try:
            for service in (here, there):
                until(lambda one=service: "a federated bundle has changed" in one.whole_log())
            yield here, there
        finally:
            there.stop()
    finally:
        here.stop()


def test_a_root_added_in_one_reaches_the_watchers_of_the_other(
    pair: tuple[Service, Service],
) -> None:
    here, there = pair
    for own, other, name in ((here, there, THERE), (there, here, HERE)):
        with Client(own.address, root_certificates=own.ca_file, timeout=20) as client:
            watch = client.watch_trust_bundle(name)
            first = next(watch)
            assert first.trust_domain == name
            assert other.root in first.trust_bundle
            assert own.root not in first.trust_bundle
            assert name in first.federated_trust_domains

            root = add_root(other)
            while root not in (bundle := next(watch)).trust_bundle:
                assert bundle.sequence > first.sequence
            assert own.root not in bundle.trust_bundle

            # Never merged: the own bundle is as it was.
            assert root not in next(client.watch_trust_bundle()).trust_bundle
            watch.close()


def test_a_token_of_one_verifies_with_the_keys_that_the_other_hands_on(
    pair: tuple[Service, Service], tmp_path: Path
) -> None:
    here, there = pair
    role = there.put_role(
        {"spiffe": "own", "key_type": "ec", "jwt_svid": {"audiences": ["https://here.example"]}}
    )
    with Client(there.address, token=there.token, root_certificates=there.ca_file) as client:
        token = until_it_comes(lambda: client.issue_jwt_svid(["https://here.example"], role)).token
    kid = jwt_verifier.header_of(token)["kid"]

    def handed_on(trust_domain: str) -> dict[str, Any]:
        with Client(here.address, root_certificates=here.ca_file) as client:
            bundle = next(client.watch_trust_bundle(trust_domain))
        keys: dict[str, Any] = json.loads(bundle.jwt_keys)
        return keys

    until(lambda: kid in json.dumps(handed_on(THERE)))
    found = jwt_verifier.verify(
        token, handed_on(THERE), "https://here.example", time.time(), tmp_path
    )
    assert found["sub"] == f"spiffe://{THERE}/ns/shop/sa/cart"
    assert handed_on(HERE) == {"keys": []}  # never merged


def until_it_comes(call: Callable[[], JwtSvid]) -> JwtSvid:
    """What the call gives, once the first key signs."""
    found: list[JwtSvid] = []

    def comes() -> bool:
        with contextlib.suppress(MeshmintError):
            found.append(call())
        return bool(found)

    until(comes)
    return found[0]


async def test_async_client_watches_a_federated_bundle(pair: tuple[Service, Service]) -> None:
    here, there = pair
    async with AsyncClient(here.address, root_certificates=here.ca_file) as client:
        async with asyncio.timeout(20):
            bundle = await anext(client.watch_trust_bundle(THERE))
    assert there.root in bundle.trust_bundle
    assert bundle.federated_trust_domains == ("never.example", THERE)


def test_the_own_trust_domain_may_be_named(pair: tuple[Service, Service]) -> None:
    here, _ = pair
    with Client(here.address, root_certificates=here.ca_file) as client:
        assert next(client.watch_trust_bundle(HERE)) == next(client.watch_trust_bundle())


def test_unknown_trust_domains_are_not_found_and_absent_bundles_unavailable(
    pair: tuple[Service, Service],
) -> None:
    here, _ = pair
    with (
        Client(here.address, root_certificates=here.ca_file) as client,
        pytest.raises(NotFound),
    ):
        next(client.watch_trust_bundle("stranger.example"))
    for name, code in (
        ("never.example", grpc.StatusCode.UNAVAILABLE),
        ("Never.Example", grpc.StatusCode.INVALID_ARGUMENT),
    ):
        stream = here.stub.WatchTrustBundle(
            pb.WatchTrustBundleRequest(trust_domain=name), timeout=10
        )
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() is code


def test_the_failure_of_one_federation_is_told_once_and_delays_no_other(
    pair: tuple[Service, Service],
) -> None:
    here, _ = pair

    def told() -> list[str]:
        return [
            line["trust_domain"]
            for line in here.log_lines()
            if "could not be fetched" in line.get("event", "")
        ]

    until(lambda: "never.example" in told())
    assert told().count("never.example") == 1


def test_doctor_tells_why_a_bundle_cannot_be_fetched(pair: tuple[Service, Service]) -> None:
    here, _ = pair

    def finding() -> str:
        done = here.meshmintd("doctor", "-c", here.config_path, "--json")
        (found,) = [
            one["message"]
            for one in json.loads(done.stdout)["findings"]
            if one["subject"] == "federation never.example"
        ]
        return str(found)

    until(lambda: "The last attempt, " in finding())
    assert "failed: it cannot be reached." in finding()


def test_metrics_tell_the_age_of_each_bundle(pair: tuple[Service, Service]) -> None:
    here, _ = pair
    gauge = f'meshmint_bundle_fetched_seconds{{trust_domain="{THERE}"}}'

    def metrics() -> dict[str, str]:
        with urllib.request.urlopen(here.http_url + "/metrics", timeout=5) as response:  # noqa: S310
            lines = response.read().decode().splitlines()
        return dict(line.rsplit(" ", 1) for line in lines if line.startswith("meshmint_bundle_"))

    def is_told() -> bool:
        found = metrics()
        return gauge in found and any("never" in one and "failed" in one for one in found)

    until(is_told)
    assert abs(float(metrics()[gauge]) - datetime.now(UTC).timestamp()) < 120
