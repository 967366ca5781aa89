"""Revoke over gRPC against real servers: who may, openssl's proofs, every worker and replica."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.rpc import error_details_pb2, status_pb2
from meshmint import Client, NotFound, generate_key
from meshmint.v1 import certificate_service_pb2 as pb
from support.development import run_lines
from support.leaves import make_leaf, to_pem
from support.pki import Authority
from support.programs import program
from support.service import ADMIN, Service, ServiceFactory

GUIDE = (Path(__file__).parents[2] / "docs/guide/revocation.md").read_text(encoding="utf-8")
COMPROMISED = pb.REVOCATION_REASON_KEY_COMPROMISE


@pytest.fixture(scope="session")
def role(service: Service) -> str:
    """A role for X509-SVIDs with any kind of key, known to every worker."""
    name = service.put_role({"spiffe": "own", "key_type": "any"})
    service.wait_until_everywhere(name)
    return name


def issue(service: Service, role: str, algorithm: str = "EC_P256") -> pb.IssueResponse:
    return service.issue(
        pb.IssueRequest(
            role=role, key_algorithm=pb.KeyAlgorithm.Value(f"KEY_ALGORITHM_{algorithm}")
        )
    )


def revoke(service: Service, token: str | None = None, **fields: Any) -> pb.RevokeResponse:
    metadata = None if token is None else service.metadata(token)
    return service.stub.Revoke(pb.RevokeRequest(**fields), timeout=10, metadata=metadata)


def refusal(call: Callable[[], object]) -> tuple[str, str, str]:
    """Code, reason and message."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    trailers = dict(caught.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return caught.value.code().name, info.reason, caught.value.details()


def admin_token(service: Service) -> str:
    return service.token(*ADMIN)


def openssl_proof(directory: Path, issued: pb.IssueResponse, reason: str) -> bytes:
    """The proof as the guide's openssl lines make it."""
    (directory / "cert.pem").write_text(issued.certificate)
    (directory / "key.pem").write_text(issued.private_key)
    lines = guide_block("openssl dgst").partition("grpcurl")[0]
    program("openssl")
    lines = lines.replace("reason=REVOCATION_REASON_KEY_COMPROMISE", f"reason={reason}")
    done = run_lines(lines, directory)
    assert done.returncode == 0, done.stderr
    return (directory / "proof").read_bytes()


def guide_block(words: str) -> str:
    (block,) = (
        block for block in re.findall(r"^```bash\n(.*?)^```", GUIDE, re.M | re.S) if words in block
    )
    return block


def test_an_administrator_revokes_and_the_records_say_so(service: Service, role: str) -> None:
    issued, other = issue(service, role), issue(service, role)
    assert not service.get_record(issued.serial_number).HasField("revocation")
    spelled = ":".join(re.findall("..?", issued.serial_number.upper().zfill(40)))
    answer = revoke(service, admin_token(service), serial_number=spelled, reason=COMPROMISED)
    assert (answer.serial_number, answer.issuer) == (issued.serial_number, issued.issuer)
    assert (answer.reason, answer.already_revoked) == (COMPROMISED, False)
    record = service.get_record(issued.serial_number)
    assert record.revocation.revocation_time == answer.revocation_time
    assert record.revocation.reason == COMPROMISED
    listed = {
        record.serial_number: record.HasField("revocation")
        for record in service.list_records(role=role)
    }
    assert (listed[issued.serial_number], listed[other.serial_number]) == (True, False)
    again = revoke(service, admin_token(service), serial_number=issued.serial_number)
    assert again.already_revoked
    assert (again.reason, again.revocation_time) == (COMPROMISED, answer.revocation_time)


def test_a_caller_revokes_its_own_and_cannot_tell_others_from_none(
    service: Service, role: str
) -> None:
    issued = issue(service, role)
    cart, eve = service.token(), service.token("shop", "eve")
    foreign = refusal(lambda: revoke(service, eve, serial_number=issued.serial_number))
    assert foreign[:2] == ("PERMISSION_DENIED", "REVOCATION_DENIED")
    assert foreign == refusal(lambda: revoke(service, eve, serial_number="abc"))
    assert foreign == refusal(lambda: revoke(service, eve, certificate=issued.certificate))
    assert not revoke(service, cart, certificate=issued.certificate).already_revoked
    assert revoke(service, cart, serial_number=issued.serial_number).already_revoked
    assert foreign == refusal(lambda: revoke(service, eve, serial_number=issued.serial_number))


def test_without_credential_and_proof_nothing_is_revoked(service: Service, role: str) -> None:
    issued = issue(service, role)
    code, _, _ = refusal(lambda: revoke(service, serial_number=issued.serial_number))
    assert code == "UNAUTHENTICATED"
    code, _, _ = refusal(lambda: revoke(service, "no.good.token", certificate=issued.certificate))
    assert code == "UNAUTHENTICATED"


@pytest.mark.parametrize("algorithm", ["EC_P256", "EC_P384", "EC_P521", "RSA_2048", "ED25519"])
def test_a_proof_made_with_openssl_is_enough(
    service: Service, role: str, algorithm: str, tmp_path: Path
) -> None:
    issued, other = issue(service, role, algorithm), issue(service, role, algorithm)
    proof = openssl_proof(tmp_path, issued, "REVOCATION_REASON_SUPERSEDED")
    asked = {"certificate": issued.certificate, "reason": pb.REVOCATION_REASON_SUPERSEDED}
    for changed in (
        {"reason": COMPROMISED},
        {"certificate": other.certificate},
        {"proof_of_possession": proof[:-1]},
    ):
        wrong = {**asked, "proof_of_possession": proof, **changed}
        # A credential that would do is not looked at: the proof alone decides.
        for token in (None, admin_token(service)):
            code, reason, _ = refusal(lambda: revoke(service, token, **wrong))  # noqa: B023
            assert (code, reason) == ("PERMISSION_DENIED", "PROOF_INVALID")
    answer = revoke(service, "no.good.token", **asked, proof_of_possession=proof)
    assert (answer.serial_number, answer.already_revoked) == (issued.serial_number, False)
    # Whoever saw the request sends it once more: nothing changes.
    replayed = revoke(service, **asked, proof_of_possession=proof)
    answer.already_revoked = True
    assert replayed == answer


def test_a_certificate_that_no_issuer_signed_revokes_nothing(
    service: Service, role: str, tmp_path: Path
) -> None:
    issued = issue(service, role)
    genuine = x509.load_pem_x509_certificate(issued.certificate.encode())
    forger = Authority(generate_key(), x509.load_pem_x509_certificate(issued.chain[0].encode()))
    key = generate_key()
    forged = to_pem(make_leaf(forger, key, serial_number=genuine.serial_number))
    with (
        Client(service.address, root_certificates=service.ca_file) as nobody,
        pytest.raises(NotFound, match="No issuer of this service signed"),
    ):
        nobody.revoke(certificate=forged, private_key=key)
    code, _, _ = refusal(lambda: revoke(service, admin_token(service), certificate=forged))
    assert code == "NOT_FOUND"
    assert not service.get_record(issued.serial_number).HasField("revocation")
    # That of an issuer is its root's business.
    code, reason, _ = refusal(
        lambda: revoke(service, admin_token(service), certificate=issued.chain[0])
    )
    assert (code, reason) == ("INVALID_ARGUMENT", "CERTIFICATE_OF_CA")


def test_a_certificate_without_a_record_is_revoked_by_presenting_it(
    service: Service, tmp_path: Path
) -> None:
    no_store = service.put_role({"spiffe": "own", "key_type": "ec", "no_store": True})
    issued = service.issue(pb.IssueRequest(role=no_store))
    code, _, message = refusal(
        lambda: revoke(service, admin_token(service), serial_number=issued.serial_number)
    )
    assert code == "NOT_FOUND"
    assert "no_store" in message
    code, _, _ = refusal(lambda: revoke(service, service.token(), certificate=issued.certificate))
    assert code == "PERMISSION_DENIED"
    proof = openssl_proof(tmp_path, issued, "REVOCATION_REASON_UNSPECIFIED")
    answer = revoke(service, certificate=issued.certificate, proof_of_possession=proof)
    assert not answer.already_revoked
    assert revoke(service, admin_token(service), serial_number=issued.serial_number).already_revoked


def test_expired_certificates_and_unknown_reasons_are_refused(service: Service, role: str) -> None:
    request = pb.IssueRequest(role=role, key_algorithm=pb.KEY_ALGORITHM_EC_P256)
    request.validity.ttl.FromSeconds(1)
    issued = service.issue(request)
    for number in (2, 6, 99):
        code, _, message = refusal(
            lambda: revoke(
                service,
                admin_token(service),
                serial_number="1",
                reason=number,  # noqa: B023
            )
        )
        assert code == "INVALID_ARGUMENT"
        assert "not a known RevocationReason" in message
    while datetime.now(UTC) < issued.not_after.ToDatetime(tzinfo=UTC) + timedelta(seconds=0.1):
        time.sleep(0.05)
    code, reason, message = refusal(
        lambda: revoke(service, admin_token(service), serial_number=issued.serial_number)
    )
    assert (code, reason) == ("FAILED_PRECONDITION", "CERTIFICATE_EXPIRED")
    assert "expired at" in message


def test_every_worker_knows_at_once(service: Service, role: str) -> None:
    assert service.workers > 1
    token = admin_token(service)
    for _ in range(6):
        issued = issue(service, role)
        assert not revoke(service, token, serial_number=issued.serial_number).already_revoked
        for _ in range(4):
            with service.new_channel() as channel:
                answer = service.stub_of(channel).Revoke(
                    pb.RevokeRequest(serial_number=issued.serial_number),
                    timeout=10, metadata=service.metadata(token),
                )  # fmt: skip
                assert answer.already_revoked


def test_replicas_on_one_postgresql_revoke_as_one(
    service_factory: ServiceFactory, postgres_url: str
) -> None:
    with service_factory.start(store=postgres_url) as first, first.replica() as second:
        role = first.put_role({"spiffe": "own", "key_type": "any"})
        issued = issue(first, role)
        answer = revoke(
            first, admin_token(first), serial_number=issued.serial_number, reason=COMPROMISED
        )
        theirs = revoke(second, second.token(), certificate=issued.certificate)
        answer.already_revoked = True
        assert theirs == answer
        assert second.get_record(issued.serial_number).revocation.reason == COMPROMISED


def test_the_services_own_certificate_is_an_administrators_business(service: Service) -> None:
    serial = f"{service.served_serial():x}"
    assert service.get_record(serial).role == "meshmint-server"
    for token in (service.token(), service.token("meshmint", "meshmint-server")):
        code, _, _ = refusal(lambda: revoke(service, token, serial_number=serial))  # noqa: B023
        assert code == "PERMISSION_DENIED"
    assert not service.get_record(serial).HasField("revocation")


def test_revocations_are_written_down_and_counted(service: Service, role: str) -> None:
    issued = issue(service, role)
    key = load_pem_private_key(issued.private_key.encode(), None)
    service.new_log_lines()
    with Client(service.address, root_certificates=service.ca_file) as nobody:
        nobody.revoke(certificate=issued.certificate, private_key=key, reason="superseded")  # type: ignore[arg-type]
    refusal(lambda: revoke(service, service.token("shop", "eve"), serial_number="abc"))
    lines: list[dict[str, Any]] = []
    while len(lines) < 2:
        lines += [line for line in service.new_log_lines() if line.get("type") == "audit"]
    granted, refused = lines
    assert (granted["event"], granted["serial"]) == ("certificate revoked", issued.serial_number)
    assert (granted["caller"], granted["reason"]) == ("proof of possession", "superseded")
    assert (refused["reason"], refused["serial"]) == ("REVOCATION_DENIED", "abc")
    for secret in (issued.private_key, issued.certificate):
        assert secret.splitlines()[1] not in service.whole_log()
    metrics = httpx.get(service.http_url + "/metrics", trust_env=False, timeout=30).text
    for outcome in ("revoked", "refused"):
        assert f'meshmint_revocations_total{{outcome="{outcome}"}}' in metrics


def test_the_lines_of_the_guide_work_as_they_stand(
    service: Service, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program("grpcurl")
    (tmp_path / "token").write_text(admin_token(service))
    monkeypatch.setenv("MESHMINT_SERVER", service.address)
    monkeypatch.setenv("MESHMINT_CA_FILE", str(service.ca_file))
    monkeypatch.setenv("MESHMINT_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("PATH", f"{Path(program('grpcurl')).parent}:{os.environ['PATH']}")
    blocks = re.findall(r"^```bash\n(.*?)^```", GUIDE, re.M | re.S)
    assert len(blocks) == 4
    for block in blocks:
        issued = issue(service, role)
        (tmp_path / "cert.pem").write_text(issued.certificate)
        (tmp_path / "key.pem").write_text(issued.private_key)
        monkeypatch.setenv("serial", issued.serial_number)
        done = run_lines(block, tmp_path)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        assert issued.serial_number in done.stdout
        assert service.get_record(issued.serial_number).revocation.reason == COMPROMISED


def test_the_guide_has_every_reason() -> None:
    for name in pb.RevocationReason.keys():  # noqa: SIM118 - a wrapper, no mapping
        option = name.removeprefix("REVOCATION_REASON_").lower().replace("_", "-")
        assert f"| `{option}` | `{name}` |" in GUIDE
