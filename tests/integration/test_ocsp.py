"""OCSP end to end: a real server, openssl as the second opinion, and what strangers send."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.store import RevocationRow, Store
from support.ocsp import (
    NONCE,
    Reply,
    ask,
    element,
    extension,
    fetch,
    get,
    get_url,
    post,
    request_for,
    request_of,
    single,
)
from support.programs import program
from support.service import Service, ServiceFactory, make_root, sign_intermediate

LONGEST = 16 * 1024


@dataclass(frozen=True)
class Leaf:
    """A certificate of ours with what stands above it."""

    certificate: x509.Certificate
    issuer: x509.Certificate
    issuer_name: str
    root: x509.Certificate

    @property
    def serial(self) -> int:
        return self.certificate.serial_number

    def request(self, **options: object) -> bytes:
        return request_for(self.issuer, self.serial, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class World:
    """A server whose first issuer has retired, whose third is to come."""

    service: Service
    role: str
    retired: Leaf
    next_issuer: x509.Certificate

    @property
    def url(self) -> str:
        return self.service.http_url

    def leaf(self) -> Leaf:
        return issue(self.service, self.role)


def issue(service: Service, role: str) -> Leaf:
    response = service.issue(pb.IssueRequest(role=role))
    load = x509.load_pem_x509_certificate
    serial = load(response.certificate.encode()).serial_number
    return Leaf(
        load(response.certificate.encode()),
        load(response.chain[0].encode()),
        service.get_record(f"{serial:x}").issuer,
        load(response.trust_bundle[0].encode()),
    )


def add_issuer(service: Service, *, activate: bool) -> x509.Certificate:
    """One more issuer below a root of its own."""
    name = f"issuer-{uuid.uuid4().hex[:6]}"
    csr_file, signed = (service.directory / f"{name}.{end}" for end in ("csr", "pem"))
    done = service.meshmintd(
        "ca", "csr", "-c", service.config_path, "--name", name, "--out", csr_file
    )
    assert done.returncode == 0, done.stdout + done.stderr
    key, root = make_root()
    certificate = sign_intermediate(
        x509.load_pem_x509_csr(csr_file.read_bytes()), key, root, timedelta(days=300)
    )
    signed.write_bytes(certificate.public_bytes(Encoding.PEM) + root.public_bytes(Encoding.PEM))
    done = service.meshmintd("ca", "import", "-c", service.config_path, signed)
    assert done.returncode == 0, done.stdout + done.stderr
    if activate:
        service.admin.ActivateIssuer(
            admin_pb.ActivateIssuerRequest(name=name, at_once=True),
            timeout=10, metadata=service.admin_metadata,
        )  # fmt: skip
    return certificate


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    service = Service(tmp_path_factory.mktemp("ocsp"))
    service.start()
    try:
        role = service.put_role({"spiffe": "own", "key_type": "ec", "ttl": "1h"})
        service.wait_until_everywhere(role)
        retired = issue(service, role)
        second = add_issuer(service, activate=True)
        until(lambda: issue(service, role).issuer == second)
        next_issuer = add_issuer(service, activate=False)
        world = World(service, role, retired, next_issuer)
        for issuer in (second, next_issuer):
            everywhere(service, request_for(issuer, 1), "unknown")
        yield world
    finally:
        service.stop()


def until(holds: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def everywhere(service: Service, request: bytes, outcome: str) -> None:
    """Waits until many connections in a row, and so every worker, get this answer."""
    in_a_row = 0
    deadline = time.monotonic() + 20
    while in_a_row < 8 * service.workers:
        found = post(service.http_url, request).outcome
        in_a_row = in_a_row + 1 if found == outcome else 0
        assert time.monotonic() < deadline, f"a worker says {found}"


def revoke(service: Service, leaf: Leaf, reason: int = 1) -> datetime:
    """One row in the store, as a worker of any replica would write it."""
    now = datetime.now(UTC)
    row = RevocationRow(
        serial_number=f"{leaf.serial:x}",
        issuer=leaf.issuer_name,
        shard=0,
        reason=reason,
        revoked_at=now,
        not_after=leaf.certificate.not_valid_after_utc,
        authenticator="cluster",
        caller="admin",
        request_id=uuid.uuid4().hex,
    )

    async def write() -> None:
        store = Store.open(service.config["store"])
        try:
            await store.revoke(row)
        finally:
            await store.close()

    asyncio.run(write())
    return now


def assert_openssl_accepts(
    reply: Reply, leaf: Leaf, tmp_path: Path, outcome: str, digest: str = "sha1"
) -> str:
    """openssl verifies the answer below the root alone, and reads the same in it."""
    answer, issuer, root, own = (tmp_path / n for n in ("answer.der", "i.pem", "r.pem", "o.pem"))
    answer.write_bytes(reply.body)
    for path, certificate in ((issuer, leaf.issuer), (root, leaf.root), (own, leaf.certificate)):
        path.write_bytes(certificate.public_bytes(Encoding.PEM))
    done = ask(
        f"-{digest}", "-respin", answer, "-issuer", issuer, "-cert", own, "-CAfile", root,
        "-verify_other", issuer, "-no_nonce",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Response verify OK" in done.stdout + done.stderr
    assert f"{own}: {outcome}" in done.stdout
    return done.stdout


def assert_linted(command: str, der: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"{command}.der"
    path.write_bytes(der)
    done = subprocess.run(
        [program(command), "lint", "-s", "ERROR", "-f", "JSON", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    findings = [
        finding
        for result in json.loads(done.stdout)["results"]
        for finding in result["finding_descriptions"]
    ]
    assert findings == []


# --- what is answered ------------------------------------------------------------------


@pytest.mark.parametrize("digest", ["sha1", "sha256", "sha384", "sha512"])
@pytest.mark.parametrize("nonce", [True, False])
def test_openssl_asks_by_post(world: World, tmp_path: Path, digest: str, nonce: bool) -> None:
    leaf = world.leaf()
    for name, certificate in (("i", leaf.issuer), ("r", leaf.root), ("leaf", leaf.certificate)):
        (tmp_path / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    command = [
        "-url", world.url + "/ocsp", "-issuer", "i", "-CAfile", "r", "-verify_other", "i",
        f"-{digest}", "-cert", "leaf", "-nonce" if nonce else "-no_nonce",
    ]  # fmt: skip
    done = ask(*command, cwd=tmp_path)
    assert "leaf: good" in done.stdout, done.stdout + done.stderr
    assert "Response verify OK" in done.stderr
    assert "WARNING: no nonce" not in done.stderr

    revoke(world.service, leaf, reason=4)
    everywhere(world.service, leaf.request(), "revoked")
    done = ask(*command, cwd=tmp_path)
    assert "leaf: revoked" in done.stdout
    assert "Reason: superseded" in done.stdout


@pytest.mark.parametrize("digest", [hashes.SHA1(), hashes.SHA256()], ids=["sha1", "sha256"])  # noqa: S303
def test_get_is_answered_and_openssl_verifies(
    world: World, tmp_path: Path, digest: hashes.HashAlgorithm
) -> None:
    leaf = world.leaf()
    request = leaf.request(algorithm=digest)
    assert_openssl_accepts(get(world.url, request), leaf, tmp_path, "good", digest.name)
    at = revoke(world.service, leaf)
    everywhere(world.service, leaf.request(), "revoked")
    reply = get(world.url, request)
    said = assert_openssl_accepts(reply, leaf, tmp_path, "revoked", digest.name)
    assert "Reason: keyCompromise" in said
    assert reply.response.revocation_time_utc == at.replace(microsecond=0)


def test_request_of_openssl_with_slashes_reaches_us_unescaped(world: World, tmp_path: Path) -> None:
    """Clients escape base64's slashes, pluses and equals signs, or do not."""
    leaf = world.leaf()
    for name, certificate in (("i", leaf.issuer), ("leaf", leaf.certificate)):
        (tmp_path / name).write_bytes(certificate.public_bytes(Encoding.PEM))
    texts = []
    while not any("/" in text and "+" in text for text in texts):
        ask("-issuer", "i", "-cert", "leaf", "-nonce", "-reqout", "req", cwd=tmp_path)
        texts.append(base64.b64encode((tmp_path / "req").read_bytes()).decode())
    for url in (f"{world.url}/ocsp/{texts[-1]}", get_url(world.url, base64.b64decode(texts[-1]))):
        assert fetch(urllib.request.Request(url)).outcome == "good"  # noqa: S310


def test_reason_unspecified_is_left_out(world: World) -> None:
    leaf = world.leaf()
    revoke(world.service, leaf, reason=0)
    everywhere(world.service, leaf.request(), "revoked")
    assert get(world.url, leaf.request()).response.revocation_reason is None


def test_what_was_never_issued_is_unknown_and_good_the_moment_it_is(world: World) -> None:
    issuer = world.leaf().issuer
    reply = get(world.url, request_for(issuer, 0xBADC0DE))
    assert reply.outcome == "unknown"
    assert reply.headers["cache-control"] == "no-store"
    # Another issuer's serial number is nothing that this one issued.
    assert post(world.url, request_for(issuer, world.retired.serial)).outcome == "unknown"


def test_retired_and_next_issuers_answer_with_delegates_of_their_own(
    world: World, tmp_path: Path
) -> None:
    retired = world.retired
    assert_openssl_accepts(post(world.url, retired.request()), retired, tmp_path, "good")
    response = post(world.url, request_for(world.next_issuer, 7)).response
    response.certificates[0].verify_directly_issued_by(world.next_issuer)
    revoke(world.service, retired)
    everywhere(world.service, retired.request(), "revoked")
    assert_openssl_accepts(post(world.url, retired.request()), retired, tmp_path, "revoked")


def test_unknown_issuer_and_unknown_hash_are_unauthorized(world: World) -> None:
    _, stranger = make_root()
    assert post(world.url, request_for(stranger, 5)).outcome == "unauthorized"
    leaf = world.leaf()
    # RFC 6960 has no word for it; nobody is named by a hash that is not known.
    assert post(world.url, leaf.request(algorithm=hashes.SHA224())).outcome == "unauthorized"
    reply = get(world.url, request_for(stranger, 5))
    assert reply.headers["cache-control"] == "no-store"


def test_nonce_comes_back_and_such_an_answer_is_nobody_elses(world: World) -> None:
    leaf = world.leaf()
    for nonce in (b"n", b"\x00" * 32, b"x" * 128, b"x" * 128):
        reply = get(world.url, leaf.request(nonce=nonce))
        found = reply.response.extensions.get_extension_for_class(x509.OCSPNonce)
        assert found.value.nonce == nonce
        assert reply.headers["cache-control"] == "no-store"
    # The same nonce twice gets two answers, and one without never gets a nonce.
    first, second = (get(world.url, leaf.request(nonce=b"again" * 4)).body for _ in range(2))
    assert first != second
    assert list(get(world.url, leaf.request()).response.extensions) == []


def test_answer_says_how_long_it_may_be_kept(world: World) -> None:
    reply = get(world.url, world.leaf().request())
    response, headers = reply.response, reply.headers
    assert response.next_update_utc is not None
    assert response.next_update_utc - response.this_update_utc == timedelta(hours=1)
    assert parsedate_to_datetime(headers["expires"]) == response.next_update_utc
    assert parsedate_to_datetime(headers["last-modified"]) == response.this_update_utc
    directives = headers["cache-control"].split(", ")
    assert {"public", "no-transform", "must-revalidate"} < set(directives)
    assert 1 < int(directives[0].removeprefix("max-age=")) <= 1800
    assert headers["etag"].strip('"')
    assert "cache-control" not in post(world.url, world.leaf().request()).headers


def test_cache_that_has_the_answer_is_told_so_and_its_head_can_be_had_alone(world: World) -> None:
    request = world.leaf().request()
    url = f"/ocsp/{base64.b64encode(request).decode()}"
    with closing_connection(world) as connection:  # one worker: each signs its own
        body, tag = settled(connection, url)
        for sent in (tag, f'"other", W/{tag}', "*"):
            connection.request("GET", url, headers={"If-None-Match": sent})
            again = connection.getresponse()
            assert (again.status, again.read(), again.headers["ETag"]) == (304, b"", tag)
            assert again.headers["Cache-Control"].startswith("max-age=")
        connection.request("GET", url, headers={"If-None-Match": '"other"'})
        assert connection.getresponse().read() == body
        connection.request("HEAD", url)
        head = connection.getresponse()
        assert (head.status, head.read(), head.headers["ETag"]) == (200, b"", tag)
        assert head.headers["Content-Length"] == str(len(body))


def settled(connection: http.client.HTTPConnection, url: str) -> tuple[bytes, str]:
    """An answer that is in the worker's cache, which a revocation of the test before empties."""
    answers: list[tuple[bytes, str]] = []
    while len(answers) < 2 or answers[-1] != answers[-2]:
        assert len(answers) < 20
        connection.request("GET", url)
        answer = connection.getresponse()
        answers.append((answer.read(), answer.headers["ETag"]))
    return answers[-1]


@contextlib.contextmanager
def closing_connection(world: World) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(world.service.http_address, timeout=20)
    with contextlib.closing(connection):
        yield connection


def test_linters_find_nothing(world: World, tmp_path: Path) -> None:
    leaf = world.leaf()
    gone = world.leaf()
    revoke(world.service, gone)
    everywhere(world.service, gone.request(), "revoked")
    for request in (
        leaf.request(),
        leaf.request(nonce=b"n" * 32),
        gone.request(algorithm=hashes.SHA256()),
        request_for(leaf.issuer, 9),
    ):
        assert_linted("lint_ocsp_response", post(world.url, request).body, tmp_path)
    certificate = post(world.url, leaf.request()).response.certificates[0]
    assert_linted("lint_pkix_cert", certificate.public_bytes(Encoding.DER), tmp_path)


def test_responder_certificate_is_short_lived_for_this_alone_and_on_record(world: World) -> None:
    leaf = world.leaf()
    response = post(world.url, leaf.request()).response
    certificate = response.certificates[0]
    certificate.verify_directly_issued_by(leaf.issuer)
    extensions = certificate.extensions
    usages = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.OCSP_SIGNING]
    extensions.get_extension_for_class(x509.OCSPNoCheck)
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime <= timedelta(hours=24, minutes=1)
    key_hash = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
    assert response.responder_key_hash == key_hash
    record = world.service.get_record(f"{certificate.serial_number:x}")
    assert record.role == "meshmint:ocsp-responder"
    assert post(world.url, request_for(leaf.issuer, certificate.serial_number)).outcome == "good"


# --- revocation, everywhere ------------------------------------------------------------


def test_every_worker_of_every_replica_says_revoked_the_moment_revoke_has_answered(
    world: World,
) -> None:
    with world.service.replica() as other:
        services = (world.service, other)
        for _ in range(5):
            leaf = world.leaf()
            for service in services:
                everywhere(service, leaf.request(), "good")  # and so it is in every cache
            revoke(world.service, leaf)
            found = {
                post(service.http_url, leaf.request()).outcome
                for service in reversed(services)
                for _ in range(8 * service.workers)
            }
            assert found == {"revoked"}


# --- the responder's own certificate ---------------------------------------------------


def test_responder_certificate_is_renewed_by_itself(
    service_factory: ServiceFactory, tmp_path: Path
) -> None:
    settings = {"lifetime": "1s", "responder_lifetime": "12s"}
    with service_factory.start(ocsp=settings) as service:
        leaf = issue(service, service.put_role({"spiffe": "own", "key_type": "ec"}))
        seen: set[int] = set()
        while len(seen) < 2:
            reply = post(service.http_url, leaf.request())
            assert_openssl_accepts(reply, leaf, tmp_path, "good")
            certificate = reply.response.certificates[0]
            assert reply.response.next_update_utc <= certificate.not_valid_after_utc  # type: ignore[operator]
            seen.add(certificate.serial_number)
            time.sleep(0.2)


def test_without_the_token_a_new_worker_says_try_later_until_it_is_back(
    service_factory: ServiceFactory,
) -> None:
    with service_factory.start() as service:
        leaf = issue(service, service.put_role({"spiffe": "own", "key_type": "ec"}))
        assert post(service.http_url, leaf.request()).outcome == "good"
        service.hide_token()
        service.restart_workers()
        until(lambda: _outcome(service, leaf) == "try_later")
        service.show_token()
        until(lambda: _outcome(service, leaf) == "good")


def _outcome(service: Service, leaf: Leaf) -> str:
    try:
        return post(service.http_url, leaf.request()).outcome
    except OSError:
        return "nothing: no worker listens at the moment"


# --- what strangers send ---------------------------------------------------------------


def test_oversized_and_misplaced_requests_are_http_errors(world: World) -> None:
    assert post(world.url, b"\x30" * (LONGEST + 1)).status == 413
    assert get(world.url, b"\x30" * (LONGEST + 3)).status == 414
    assert post(world.url, world.leaf().request(), "application/json").status == 415
    typed = "Application/OCSP-Request; charset=binary"
    assert post(world.url, world.leaf().request(), typed).outcome == "good"
    for method, path, allowed in (
        ("GET", "/ocsp", "POST"),
        ("PUT", "/ocsp/MAMKAQE=", "GET, HEAD"),
    ):
        asked = urllib.request.Request(world.url + path, method=method)  # noqa: S310
        reply = fetch(asked)
        assert (reply.status, reply.headers["allow"]) == (405, allowed)


def test_endless_body_is_read_no_further_than_it_may_be(world: World) -> None:
    host, port = world.service.http_address.split(":")
    with socket.create_connection((host, int(port)), 20) as connection:
        head = "POST /ocsp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):
            while True:  # until the server has had enough and hangs up
                connection.sendall(b"1000\r\n" + b"\x30" * 0x1000 + b"\r\n")
    assert post(world.url, world.leaf().request()).outcome == "good"


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"not an OCSP request",
        request_of(single()) + b"\x00",
        request_of(single(), single()),
        request_of(single(), extensions=[extension(NONCE, element(0x04, b""))]),
        request_of(single(), extensions=[extension(NONCE, element(0x04, b"n" * 129))]),
    ],
    ids=["nothing", "text", "trailing byte", "two at once", "empty nonce", "long nonce"],
)
def test_what_is_no_request_for_us_is_malformed(world: World, document: bytes) -> None:
    assert post(world.url, document).outcome == "malformed_request"
    if document:
        assert get(world.url, document).outcome == "malformed_request"


def test_text_that_is_not_base64_is_malformed(world: World) -> None:
    for text in ("hello", "%%%", "MAMKAQE", "..%2f..%2fetc", "M%00A", "\u2603".encode().hex()):
        reply = fetch(urllib.request.Request(f"{world.url}/ocsp/{text}"))  # noqa: S310
        assert reply.outcome == "malformed_request"


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_hostile_bytes_get_an_ocsp_answer_and_never_a_fault(
    world: World, data: st.DataObject
) -> None:
    honest = world.retired.request(nonce=b"n" * 16)
    at = st.integers(0, len(honest) - 1)
    changed = st.builds(
        lambda i, byte: honest[:i] + bytes((byte,)) + honest[i + 1 :], at, st.integers(0, 255)
    )
    cut = at.map(lambda i: honest[:i])
    document = data.draw(changed | cut | st.binary(max_size=200))
    known = {"good", "revoked", "unknown", "malformed_request", "unauthorized"}
    assert post(world.url, document).outcome in known
    if document:
        assert get(world.url, document).outcome in known


def test_metrics_count_answers_by_outcome(world: World) -> None:
    leaf = world.leaf()
    for _ in range(12):
        post(world.url, leaf.request())
    with urllib.request.urlopen(world.url + "/metrics", timeout=10) as response:  # noqa: S310
        lines = response.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line.startswith("meshmint_ocsp"))
    counts = {name: float(value) for name, _, value in pairs}
    assert counts['meshmint_ocsp_answers_total{outcome="good"}'] >= 12
    assert counts["meshmint_ocsp_cache_hits_total"] >= 10
