"""What the protocols of Istio and Linkerd have in common: on and off, faults, and the edges."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc_health.v1 import health_pb2, health_pb2_grpc
from meshmint.third_party.istio.ca_pb2_grpc import IstioCertificateServiceStub
from meshmint.third_party.linkerd import identity_pb2
from meshmint.third_party.linkerd.identity_pb2_grpc import IdentityStub
from meshmint.v1 import certificate_service_pb2 as pb
from support.hsm_shim import DEVICE, Ckr, Shim
from support.identity_provider import Answer, IdentityServer, TestCa, TokenIssuer
from support.mesh import wait_until
from support.programs import program
from support.proxies import (
    LINKERD_AUDIENCE,
    ROLES,
    Proxies,
    WithoutAlpn,
    linkerd_csr,
    proxies_of,
    refusal,
    ztunnel_csr,
)
from support.service import Service, ServiceFactory, free_port, make_root, sign_intermediate
from support.softhsm import require_module

ISTIO = "istio.v1.auth.IstioCertificateService"
LINKERD = "io.linkerd.proxy.identity.Identity"
CART = ("shop", "cart")


def grpcurl(service: Service, *arguments: str) -> str:
    return subprocess.run(
        [program("grpcurl"), "-cacert", service.ca_file, *arguments],
        capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip


# --- off and on -----------------------------------------------------------------------


def test_neither_is_served_or_listed_unless_it_is_on(service: Service) -> None:
    listed = grpcurl(service, service.address, "list")
    assert "meshmint.v1.CertificateService" in listed
    assert ISTIO not in listed
    assert LINKERD not in listed

    for call in (
        lambda: IstioCertificateServiceStub(service.channel).CreateCertificate,
        lambda: IdentityStub(service.channel).Certify,
    ):
        error = refusal(call(), identity_pb2.CertifyRequest(), timeout=30)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    health = health_pb2_grpc.HealthStub(service.channel)
    for name in (ISTIO, LINKERD):
        error = refusal(health.Check, health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert error.code() is grpc.StatusCode.NOT_FOUND


def test_both_are_listed_and_as_healthy_as_the_rest_when_on(proxies: Proxies) -> None:
    listed = grpcurl(proxies.service, proxies.service.address, "list").split()
    assert {ISTIO, LINKERD} <= set(listed)
    health = health_pb2_grpc.HealthStub(proxies.service.channel)
    for name in (ISTIO, LINKERD):
        answer = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_grpcurl_can_call_both_without_a_proto_file(proxies: Proxies) -> None:
    service = proxies.service
    request: dict[str, Any] = {
        "csr": ztunnel_csr(proxies.spiffe_id(*CART)),
        "validity_duration": 600,
        "metadata": {"CertSigner": ""},
    }
    answer = json.loads(
        grpcurl(
            service,
            "-H", f"authorization: Bearer {proxies.token(*CART)}", "-H", "ClusterID: Kubernetes",
            "-d", json.dumps(request), service.address, f"{ISTIO}/CreateCertificate",
        )
    )  # fmt: skip
    assert len(answer["cert_chain"]) == 3

    name = proxies.linkerd_name(*CART)
    request = {
        "identity": name,
        "token": base64.b64encode(
            proxies.token(*CART, audience=LINKERD_AUDIENCE).encode()
        ).decode(),
        "certificate_signing_request": base64.b64encode(linkerd_csr(name)).decode(),
    }
    answer = json.loads(
        grpcurl(service, "-d", json.dumps(request), service.address, f"{LINKERD}/Certify")
    )
    x509.load_der_x509_certificate(base64.b64decode(answer["leaf_certificate"]))


def test_the_roots_are_read_as_the_guides_say(proxies: Proxies) -> None:
    service = proxies.service
    answer = grpcurl(service, service.address, "meshmint.v1.CertificateService/GetChain")

    assert "".join(json.loads(answer)["trust_bundle"]) == service.ca_file.read_text()


def metrics(service: Service) -> str:
    with urllib.request.urlopen(service.http_url + "/metrics", timeout=30) as response:  # noqa: S310 - loopback
        return str(response.read().decode())


def test_metrics_know_both(proxies: Proxies) -> None:
    proxies.create(ztunnel_csr(proxies.spiffe_id(*CART)), proxies.token(*CART))
    name = proxies.linkerd_name(*CART)
    refusal(proxies.certify, name, linkerd_csr(name), "nonsense")

    # A call is counted when it is over, which its client may know before.
    counted = (
        'rpc="IstioCertificateService/CreateCertificate"',
        'code="INVALID_ARGUMENT",rpc="Identity/Certify"',
    )
    ends = time.monotonic() + 20
    while not all(one in (shown := metrics(proxies.service)) for one in counted):
        assert time.monotonic() < ends, shown
        time.sleep(0.05)
    assert "mesh.example/ns" not in shown


# --- what they depend on ---------------------------------------------------------------


def test_a_reviewer_in_trouble_is_unavailable_to_both(proxies: Proxies) -> None:
    """Never a code after which agents give up."""
    proxies.api.faults[IdentityServer.TOKEN_REVIEW] = Answer(503)
    try:
        name = proxies.linkerd_name("shop", "new")
        errors = [
            refusal(
                proxies.create,
                ztunnel_csr(proxies.spiffe_id("shop", "new")),
                proxies.token("shop", "new"),
            ),
            refusal(
                proxies.certify,
                name,
                linkerd_csr(name),
                proxies.token("shop", "new", audience=LINKERD_AUDIENCE),
            ),
        ]
    finally:
        proxies.api.faults.clear()

    assert {error.code() for error in errors} == {grpc.StatusCode.UNAVAILABLE}

    def is_back() -> bool:
        try:
            proxies.create(
                ztunnel_csr(proxies.spiffe_id("shop", "new")), proxies.token("shop", "new")
            )
        except grpc.RpcError:
            return False
        return True

    wait_until(is_back, "the reviewer is asked again")


# --- a service of its own, for what the others must not see ------------------------------


@contextmanager
def own_service(directory: Path, built_shim: Path) -> Iterator[Proxies]:
    shim = Shim(built_shim, require_module(), directory / "control")
    made = Service(
        directory / "service",
        workers=1,
        shim=shim,
        keys={"sign_timeout": 3},
        request_time_limit="5s",
        admission={"rates": [{"roles": ["istio-short"], "rate": 0.001, "burst": 1}]},
    )
    ca = TestCa(directory / "cluster-ca")
    (made.directory / "cluster-ca.pem").write_bytes(ca.pem)
    west = TokenIssuer(directory / "west", issuer="https://west.test")
    with IdentityServer(made.tokens, ca) as api:
        changes = proxies_of(made, api)
        changes["authenticators"].append(
            {
                "kind": "kubernetes",
                "name": "west",
                "issuer": west.issuer,
                "audiences": ["istio-ca"],
                "algorithms": ["ES256"],
                "jwks_file": str(west.jwks_file),
                "spiffe_id": "spiffe://{trust_domain}/west/ns/{namespace}/sa/{service_account}",
            }
        )
        changes["istio"] |= {
            "authenticators": ["cluster", "west"],
            "clusters": {"Kubernetes": "cluster", "west": "west"},
        }
        made.change_config(**changes)
        made.start()
        try:
            for name, role in ROLES.items():
                made.put_named_role(name, role | {"callers": [{"namespace": "*"}]})
            yield Proxies(made, api, west)
        finally:
            shim.heal()
            made.stop()
            shim.close()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, built_shim: Path) -> Iterator[Proxies]:
    with own_service(tmp_path_factory.mktemp("own"), built_shim) as made:
        yield made


def west_token(own: Proxies) -> str:
    assert own.west is not None
    return own.west.jwt(own.west.kubernetes_claims(*CART, audience="istio-ca"))


WEST_CART = "spiffe://mesh.example/west/ns/shop/sa/cart"


@pytest.mark.parametrize(
    "ids", [("west",), (), ("",), ("Kubernetes", "west"), ("other", "Kubernetes")]
)
def test_one_cluster_id_or_none_that_counts_lets_a_token_of_the_cluster_in(
    own: Proxies, ids: tuple[str, ...]
) -> None:
    assert own.create(ztunnel_csr(WEST_CART), west_token(own), cluster_ids=ids).cert_chain


@pytest.mark.parametrize("cluster_id", ["Kubernetes", "elsewhere", "WEST"])
def test_a_token_of_another_cluster_than_the_request_names_is_refused(
    own: Proxies, cluster_id: str
) -> None:
    error = refusal(own.create, ztunnel_csr(WEST_CART), west_token(own), cluster_ids=[cluster_id])

    assert error.code() is grpc.StatusCode.UNAUTHENTICATED


def test_an_authenticator_that_is_not_named_for_linkerd_does_not_count_there(
    own: Proxies,
) -> None:
    name = own.linkerd_name(*CART)
    # Known by now from Istio, which does not help.
    own.create(ztunnel_csr(WEST_CART), token := west_token(own), cluster_ids=())

    error = refusal(own.certify, name, linkerd_csr(name), token)

    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_rates_hold_and_have_agents_ask_again(own: Proxies) -> None:
    def ask() -> None:
        own.create(
            ztunnel_csr(own.spiffe_id("shop", "greedy")),
            own.token("shop", "greedy"),
            CertSigner="signers.example/short",
        )

    ask()
    assert refusal(ask).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("fault", ["is removed", "hangs"])
def test_an_hsm_that_is_away_has_agents_ask_again_though_they_set_no_deadline(
    own: Proxies, fault: str
) -> None:
    shim = own.service.shim
    assert shim is not None
    name = own.linkerd_name(*CART)
    linkerd_token = own.token(*CART, audience=LINKERD_AUDIENCE)
    istio_csr, istio_token = ztunnel_csr(own.spiffe_id(*CART)), own.token(*CART)

    def codes() -> set[grpc.StatusCode]:
        """Of a call of each, of which that of Istio says no deadline."""
        found = set()
        for call in (
            lambda: own.create(istio_csr, istio_token, timeout=None),
            lambda: own.certify(name, linkerd_csr(name), linkerd_token),
        ):
            try:
                call()
                found.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                found.add(error.code())
        return found

    assert codes() == {grpc.StatusCode.OK}
    if fault == "hangs":
        shim.hang("C_Sign")
    else:
        shim.fail(*DEVICE, with_=Ckr.DEVICE_REMOVED)
    try:
        assert codes() <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    finally:
        shim.heal()
    wait_until(lambda: codes() == {grpc.StatusCode.OK}, "the HSM is back")


def test_the_last_element_has_every_root_once_another_is_on_its_way(
    own: Proxies, tmp_path: Path
) -> None:
    service = own.service
    request = tmp_path / "next.csr"
    done = service.meshmintd(
        "ca", "csr", "-c", service.config_path, "--name", "issuer-2", "--out", request
    )
    assert done.returncode == 0, done.stdout + done.stderr
    key, root = make_root("Next root")
    signed = sign_intermediate(
        x509.load_pem_x509_csr(request.read_bytes()), key, root, timedelta(days=300)
    )
    files = [tmp_path / "issuer.pem", tmp_path / "root.pem"]
    for file, certificate in zip(files, (signed, root), strict=True):
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    done = service.meshmintd(
        "ca", "import", "-c", service.config_path, "--name", "issuer-2", *files
    )
    assert done.returncode == 0, done.stdout + done.stderr

    csr = ztunnel_csr(own.spiffe_id(*CART))

    def roots() -> str:
        return str(own.create(csr, own.token(*CART)).cert_chain[-1])

    wait_until(lambda: roots().count("BEGIN CERTIFICATE") == 2, "both roots are there")
    response = own.create(csr, own.token(*CART))
    assert len(response.cert_chain) == 3
    assert all(one.count("BEGIN CERTIFICATE") == 1 for one in response.cert_chain[:-1])
    assert files[1].read_text() in response.cert_chain[-1]
    assert service.ca_file.read_text() in response.cert_chain[-1]
    own.verify(tmp_path, response.cert_chain[0], response.cert_chain[1:-1], response.cert_chain[-1])


def test_sigterm_lets_what_proxies_asked_for_end(
    service_factory: ServiceFactory,
) -> None:
    listen = f"127.0.0.1:{free_port()}"
    linkerd = {
        "enabled": True, "role": "linkerd", "authenticators": ["cluster"], "listen": listen,
    }  # fmt: skip
    with (
        service_factory.start(linkerd=linkerd) as service,
        WithoutAlpn(listen, service.ca_file, "localhost") as through,
        grpc.insecure_channel(through.address) as channel,
    ):
        role = service.put_role({"spiffe": "own", "key_type": "any"})
        slow = [
            service.stub_of(channel).Issue.future(
                pb.IssueRequest(role=role, key_algorithm=pb.KEY_ALGORITHM_RSA_4096),
                timeout=60,
                metadata=service.metadata(service.token()),
            )
            for _ in range(4)
        ]

        def all_arrived() -> bool:
            in_flight = re.search(r"^meshmint_rpcs_in_flight ([0-9]+)", metrics(service), re.M)
            assert in_flight is not None
            return int(in_flight[1]) + sum(future.done() for future in slow) >= len(slow)

        wait_until(all_arrived, "all requests have arrived")
        service.process.send_signal(signal.SIGTERM)
        assert all(future.result().certificate for future in slow)
        assert service.process.wait(60) == 0
        # A second one may have the port at once.
        with socket.socket() as probe:
            host, port = listen.split(":")
            assert probe.connect_ex((host, int(port))) != 0


def test_the_port_for_proxies_is_held_like_the_others(own: Proxies, tmp_path: Path) -> None:
    """SO_REUSEPORT would let a second server take half of the proxies in silence."""
    other = own.service.config | {
        "listen": f"127.0.0.1:{free_port()}",
        "http": {"listen": f"127.0.0.1:{free_port()}"},
    }
    file = tmp_path / "second.yaml"
    file.write_text(yaml.safe_dump(other))

    done = own.service.meshmintd("serve", "-c", file)

    assert done.returncode != 0
    assert "linkerd.listen" in done.stdout + done.stderr
