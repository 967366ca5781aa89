"""CRLs, CA certificates and the bundle over HTTP, from a real service with two workers."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AuthorityInformationAccessOID
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.authority import shard_of
from meshmint_server.store import RevocationRow, Store
from support.crls import findings, serials_of
from support.programs import program
from support.service import Service, ServiceFactory


class Answer:
    """What an HTTP server said."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def max_age(self) -> int:
        match = re.fullmatch(r"public, max-age=([0-9]+)", self.headers["cache-control"])
        assert match
        return int(match[1])


def ask(service: Service, path: str, method: str = "GET", **headers: str) -> Answer:
    """One request on a connection of its own, its path sent as it is."""
    connection = http.client.HTTPConnection(service.http_address, timeout=10)
    try:
        connection.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders()
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def crl_of(service: Service, path: str = "/crl/issuer-1/0.crl") -> bytes:
    """A CRL, once there is one."""
    wait_for(lambda: ask(service, path).status == 200)
    return ask(service, path).body


def leaf_of(service: Service) -> x509.Certificate:
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    return x509.load_pem_x509_certificate(
        service.issue(pb.IssueRequest(role=role)).certificate.encode()
    )


def revoke(service: Service, leaf: x509.Certificate, shards: int = 1) -> None:
    async def write() -> None:
        store = Store.open(service.config["store"])
        try:
            await store.revoke(
                RevocationRow(
                    serial_number=f"{leaf.serial_number:x}",
                    issuer="issuer-1",
                    shard=shard_of(leaf.serial_number, shards),
                    reason=1,
                    revoked_at=datetime.now(UTC),
                    not_after=leaf.not_valid_after_utc,
                    authenticator="cluster",
                    caller="system:serviceaccount:meshmint-system:admin",
                    request_id="1",
                )
            )
        finally:
            await store.close()

    asyncio.run(write())


def root_crl(service: Service) -> bytes:
    """The offline root's own CRL, PEM, which lists nothing."""
    now = datetime.now(UTC)
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(service.root.subject)
        .last_update(now - timedelta(minutes=1))
        .next_update(now + timedelta(days=1))
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(service.root_key.public_key()),
            critical=False,
        )
        .sign(service.root_key, hashes.SHA384())
    )
    return crl.public_bytes(Encoding.PEM)


def verify(
    service: Service, directory: Path, leaf: x509.Certificate, *crls: bytes, deltas: bool = False
) -> str:
    """What `openssl verify -crl_check_all` says, with these CRLs (PEM) and the root's."""
    leaf_file, crl_file, chain_file = (directory / n for n in ("leaf.pem", "crls.pem", "ca.pem"))
    leaf_file.write_bytes(leaf.public_bytes(Encoding.PEM))
    crl_file.write_bytes(b"".join((*crls, root_crl(service))))
    chain_file.write_bytes(ask(service, "/ca/issuer-1/chain.pem").body)
    done = subprocess.run(
        [program("openssl"), "verify", "-x509_strict", "-crl_check_all",
         *(["-use_deltas"] if deltas else []), "-CRLfile", crl_file,
         "-CAfile", service.ca_file, "-untrusted", chain_file, leaf_file],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_crl_is_a_document_that_caches_can_keep(service: Service) -> None:
    der = crl_of(service)
    answers = [ask(service, "/crl/issuer-1/0.crl") for _ in range(12)]

    # Strong tags: equal ones for equal bytes on both workers.
    assert len({(one.headers["etag"], one.body) for one in answers}) == len(
        {one.body for one in answers}
    )
    full = answers[-1]
    crl = x509.load_der_x509_crl(full.body)
    assert full.headers["content-type"] == "application/pkix-crl"
    assert parsedate_to_datetime(full.headers["last-modified"]) == crl.last_update_utc
    assert full.max_age == 2, "no longer than a revocation takes to show up"
    assert findings(der) == []

    pem = ask(service, "/crl/issuer-1/0.pem")
    assert pem.headers["content-type"] == "application/x-pem-file"
    assert x509.load_pem_x509_crl(pem.body).issuer == crl.issuer

    head = ask(service, "/crl/issuer-1/0.crl", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert int(head.headers["content-length"]) == len(full.body)


@pytest.mark.parametrize(
    "path",
    ["/crl/issuer-1/0.crl", "/ca/issuer-1.crt", "/ca/issuer-1.pem", "/bundle.json", "/bundle.pem"],
)
def test_client_that_has_the_document_is_told_so(service: Service, path: str) -> None:
    crl_of(service)
    first = ask(service, path)
    tag, date = first.headers["etag"], first.headers.get("last-modified", "")
    for headers in (
        {"If_None_Match": tag},
        {"If_None_Match": f'"other", W/{tag}'},
        {"If_None_Match": "*"},
        *([{"If_Modified_Since": date}] if date else []),
    ):
        answer = ask(service, path, **headers)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == first.headers["cache-control"]
    long_ago = format_datetime(datetime(2001, 1, 1, tzinfo=UTC), usegmt=True)
    for headers in (
        {"If_None_Match": '"other"'},
        {"If_None_Match": '"other"', "If_Modified_Since": date or long_ago},  # RFC 9110, 13.2.2
        {"If_Modified_Since": long_ago},
        {"If_Modified_Since": "yesterday"},
    ):
        assert ask(service, path, **headers).status == 200


def test_issuer_and_bundle_are_there_in_both_forms(service: Service) -> None:
    der, pem, chain = (ask(service, f"/ca/issuer-1{f}") for f in (".crt", ".pem", "/chain.pem"))
    issuer = x509.load_der_x509_certificate(der.body)
    assert der.headers["content-type"] == "application/pkix-cert"
    assert pem.headers["content-type"] == chain.headers["content-type"] == "application/x-pem-file"
    assert x509.load_pem_x509_certificates(pem.body) == [issuer]
    assert x509.load_pem_x509_certificates(chain.body) == [issuer]
    issuer.verify_directly_issued_by(service.root)

    bundle = ask(service, "/bundle.pem")
    assert service.root in x509.load_pem_x509_certificates(bundle.body)
    document = json.loads(ask(service, "/bundle.json").body)
    assert document["keys"][0]["use"] == "x509-svid"


def test_certificate_says_where_all_of_this_is(service: Service) -> None:
    leaf = leaf_of(service)
    access = leaf.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    assert not access.critical
    named = {one.access_method: one.access_location.value for one in access.value}
    assert named == {
        AuthorityInformationAccessOID.OCSP: f"{service.http_url}/ocsp",
        AuthorityInformationAccessOID.CA_ISSUERS: f"{service.http_url}/ca/issuer-1.crt",
    }
    points = leaf.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    assert not points.critical
    (point,) = points.value
    assert point.full_name == [
        x509.UniformResourceIdentifier(f"{service.http_url}/crl/issuer-1/0.crl")
    ]
    fetched = ask(service, "/ca/issuer-1.crt").body
    leaf.verify_directly_issued_by(x509.load_der_x509_certificate(fetched))


def test_revoked_certificate_is_refused_by_openssl_and_a_good_one_is_not(
    service: Service, tmp_path: Path
) -> None:
    good, bad = leaf_of(service), leaf_of(service)
    revoke(service, bad)
    # On every worker: each connection may reach another.
    wait_for(lambda: all(bad.serial_number in serials_of(crl_of(service)) for _ in range(12)))
    crl = ask(service, "/crl/issuer-1/0.pem").body
    assert "leaf.pem: OK" in verify(service, tmp_path, good, crl)
    assert "certificate revoked" in verify(service, tmp_path, bad, crl)


@pytest.mark.parametrize(
    "path",
    [
        "/crl/nobody/0.crl",
        "/crl/issuer-1/1.crl",
        "/crl/issuer-1/0/delta.crl",
        "/crl/issuer-1/00.crl",
        "/crl/issuer-1/-1.crl",
        "/crl/issuer-1/%D9%A0.crl",  # a zero, but not of ASCII
        "/crl/issuer-1/" + "9" * 5000 + ".crl",
        "/crl/issuer-1/0.crl%0a",
        "/crl/issuer-1/0.crl/",
        "/crl//0.crl",
        "/crl/../crl/issuer-1/0.crl",
        "/crl/%2e%2e/x",
        "/crl/issuer-1%2f..%2f..%2fetc%2fpasswd",
        "/crl/issuer-1/0.crl%00.pem",
        "/ca/../../etc/passwd",
        "/ca/%2e%2e%2fissuer-1.crt",
        "/ca/issuer-1.crt%0a",
        "/ca/nobody.crt",
        "/ca/nobody/chain.pem",
        "/bundle.json/",
        "/crl/%ff%fe.crl",
    ],
)
def test_path_that_names_nothing_is_not_found(service: Service, path: str) -> None:
    crl_of(service)
    answer = ask(service, path)
    assert answer.status == 404
    assert "issuer-1" not in answer.body.decode()


def test_nothing_can_be_put_or_deleted(service: Service) -> None:
    for path in ("/crl/issuer-1/0.crl", "/ca/issuer-1.crt", "/bundle.json"):
        for method in ("PUT", "POST", "DELETE"):
            assert ask(service, path, method).status == 405


def test_requests_that_are_no_http_are_refused_and_harm_nothing(service: Service) -> None:
    host, port = service.http_address.split(":")
    for request in (
        b"GET /crl/issuer-1/0.crl\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /crl/issuer-1/0.crl HTTP/1.1\r\nIf-None-Match: " + b'"x",' * 30_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
    ):
        with socket.create_connection((host, int(port)), 10) as connection:
            connection.sendall(request)
            answer = connection.recv(100)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 ", b"HTTP/1.1 404 "))
    assert crl_of(service)


def test_crls_are_measured_with_small_labels(service: Service) -> None:
    crl = x509.load_der_x509_crl(crl_of(service))
    metrics = ask(service, "/metrics").body.decode()
    for name in ("this_update_seconds", "next_update_seconds", "entries"):
        assert f'meshmint_crl_{name}{{issuer="issuer-1",kind="full"}}' in metrics
    assert re.search(r'meshmint_crls_made_total\{outcome="published"\} [1-9]', metrics)
    found = re.search(r'crl_next_update_seconds\{issuer="issuer-1",kind="full"\} (\S+)', metrics)
    assert found
    assert crl.next_update_utc is not None
    assert float(found[1]) >= crl.next_update_utc.timestamp()


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with CRLs in two parts, and deltas."""
    factory = ServiceFactory(tmp_path_factory.mktemp("split"))
    options = {
        "publication": {"url": "http://pki.example.org", "crl_shards": 2, "include": ["crl"]},
        "crl": {"delay": "1s", "delta_lifetime": "1m"},
    }
    with factory.start(**options) as service:
        yield service


def test_split_crl_and_its_delta_hold_in_the_eyes_of_openssl(
    split: Service, tmp_path: Path
) -> None:
    by_shard: dict[int, x509.Certificate] = {}
    while len(by_shard) < 2:
        leaf = leaf_of(split)
        by_shard.setdefault(leaf.serial_number % 2, leaf)
    bad = by_shard[1]
    path = "/crl/issuer-1/1"
    base = crl_of(split, f"{path}.crl")
    full = [crl_of(split, f"/crl/issuer-1/{shard}.pem") for shard in (0, 1)]
    revoke(split, bad, shards=2)
    wait_for(lambda: bad.serial_number in serials_of(crl_of(split, f"{path}/delta.crl")))
    delta = crl_of(split, f"{path}/delta.crl")

    points = bad.extensions.get_extension_for_class(x509.CRLDistributionPoints)
    (point,) = points.value
    assert point.full_name == [
        x509.UniformResourceIdentifier("http://pki.example.org/crl/issuer-1/1.crl")
    ]
    assert not [
        one for one in bad.extensions if isinstance(one.value, x509.AuthorityInformationAccess)
    ]
    assert crl_of(split, f"{path}.crl") == base, "one revocation makes no full CRL"
    assert serials_of(base) == serials_of(crl_of(split, "/crl/issuer-1/0/delta.crl")) == set()
    assert findings(base) == findings(delta) == []
    deltas = crl_of(split, f"{path}/delta.pem")
    # The base alone does not know; the delta does, and for its own part only.
    assert "leaf.pem: OK" in verify(split, tmp_path, bad, *full)
    assert "certificate revoked" in verify(split, tmp_path, bad, *full, deltas, deltas=True)
    assert "leaf.pem: OK" in verify(split, tmp_path, by_shard[0], *full, deltas, deltas=True)
    assert "different CRL scope" in verify(split, tmp_path, bad, full[0])
