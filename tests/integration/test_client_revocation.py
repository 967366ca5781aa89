"""Revoking with the client and the command `meshmint`: proofs made here, and nothing else sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from meshmint import (
    AdminClient,
    AnswerRefused,
    AsyncClient,
    Client,
    InvalidArgument,
    KeyAlgorithm,
    PermissionDenied,
    Unauthenticated,
    generate_key,
)
from meshmint.cli import main
from meshmint.v1 import certificate_service_pb2 as pb
from support.fake_service import fake_service
from support.service import ADMIN, Service


@pytest.fixture(scope="session")
def role(service: Service) -> str:
    """A role for X509-SVIDs with any kind of key, known to every worker."""
    name = service.put_role({"spiffe": "own", "key_type": "any"})
    service.wait_until_everywhere(name)
    return name


@pytest.mark.parametrize("algorithm", ["ec-p521", "rsa-2048", "ed25519"])
async def test_the_client_proves_possession_and_sends_neither_key_nor_token(
    service: Service, role: str, algorithm: KeyAlgorithm
) -> None:
    def no_token() -> str:
        pytest.fail("the token was asked for")

    async with AsyncClient(
        service.address, token=service.token(), root_certificates=service.ca_file
    ) as client:
        svid = await client.request_svid(role, key_algorithm=algorithm)
        other = await client.request_svid(role)
        with pytest.raises(InvalidArgument, match="not the key of the certificate"):
            await client.revoke(certificate=svid.certificate, private_key=other.private_key)
    with Client(service.address, token=no_token, root_certificates=service.ca_file) as nobody:
        revocation = nobody.revoke(
            certificate=svid.certificate_pem,
            private_key=svid.private_key,
            reason="key-compromise",
        )
    assert (revocation.serial_number, revocation.reason) == (svid.serial_number, "key-compromise")
    assert abs(datetime.now(UTC) - revocation.revocation_time) < timedelta(minutes=5)
    assert not revocation.already_revoked
    with AdminClient(
        service.address, token=service.token(*ADMIN), root_certificates=service.ca_file
    ) as admin:
        record = admin.get_record(svid.serial_number)
        assert record.revocation_time == revocation.revocation_time
        assert record.revocation_reason == "key-compromise"
        assert admin.get_record(other.serial_number).revocation_reason is None


async def test_the_client_revokes_by_serial_with_its_credential(
    service: Service, role: str
) -> None:
    async with AsyncClient(
        service.address, token=service.token(), root_certificates=service.ca_file
    ) as client:
        svid = await client.request_svid(role)
        assert not (await client.revoke(svid.serial_number.upper())).already_revoked
        again = await client.revoke(certificate=svid.certificate, reason="superseded")
        assert (again.already_revoked, again.reason) == (True, "unspecified")
        with pytest.raises(PermissionDenied):
            await client.revoke("abc")
    with (
        Client(service.address, root_certificates=service.ca_file) as nobody,
        pytest.raises(Unauthenticated),
    ):
        nobody.revoke(svid.serial_number)


def test_what_names_no_certificate_is_not_even_sent(tmp_path: Path) -> None:
    leaf = generate_key()
    with fake_service(tmp_path) as running:
        with Client(running.target, insecure=True, token="a.b.c") as client:
            for arguments in (
                {},
                {"serial_number": "1", "certificate": b"x"},
                {"serial_number": "xyz"},
                {"serial_number": "1", "private_key": leaf},
                {"certificate": "hello"},
                {"certificate": b"\x30\x00"},
                {"serial_number": "1", "reason": "because"},
            ):
                with pytest.raises(InvalidArgument):
                    client.revoke(**arguments)  # type: ignore[arg-type]
        assert running.calls == []


def test_an_answer_about_another_certificate_is_refused(tmp_path: Path) -> None:
    with (
        fake_service(tmp_path) as running,
        Client(running.target, insecure=True, token="a.b.c") as client,
    ):
        assert client.revoke("0A:bc").serial_number == "abc"
        running.answers.append(lambda _request, _context: pb.RevokeResponse(serial_number="2"))
        with pytest.raises(AnswerRefused):
            client.revoke("1")


# --- the command -----------------------------------------------------------------------


@pytest.fixture
def command(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """`meshmint revoke` as the caller shop/cart."""
    (tmp_path / "token").write_text(service.token())
    monkeypatch.setenv("MESHMINT_SERVER", service.address)
    monkeypatch.setenv("MESHMINT_CA_FILE", str(service.ca_file))
    monkeypatch.setenv("MESHMINT_TOKEN_FILE", str(tmp_path / "token"))
    return lambda *arguments: main(["revoke", *arguments])


def test_the_command_revokes_by_serial_and_the_record_tells(
    role: str,
    service: Service,
    command: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    serial = service.issue(
        pb.IssueRequest(role=role, key_algorithm=pb.KEY_ALGORITHM_EC_P256)
    ).serial_number
    assert command("--serial", serial, "--reason", "superseded") == 0
    out, err = capsys.readouterr()
    assert serial in out
    assert "superseded" in out
    assert err == ""
    assert command("--serial", serial, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["already_revoked"] is True
    assert document["reason"] == "superseded"
    assert document["revocation_time"].endswith("Z")
    monkeypatch.setenv("MESHMINT_TOKEN", service.token(*ADMIN))
    monkeypatch.delenv("MESHMINT_TOKEN_FILE")
    assert main(["records", serial, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["revocation_time"] == document["revocation_time"]
    assert record["revocation_reason"] == "superseded"


def test_the_command_proves_possession_with_the_first_certificate_of_a_chain(
    service: Service,
    role: str,
    command: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "token").unlink()
    issued = service.issue(pb.IssueRequest(role=role, key_algorithm=pb.KEY_ALGORITHM_EC_P256))
    (tmp_path / "fullchain.pem").write_text(issued.certificate + issued.chain[0])
    (tmp_path / "key.pem").write_text(issued.private_key)
    target = ("--certificate", str(tmp_path / "fullchain.pem"))
    assert command(*target) == 2  # without the key it takes a token
    assert command(*target, "--key", str(tmp_path / "key.pem"), "--reason", "key-compromise") == 0
    assert issued.serial_number in capsys.readouterr().out
    record = service.get_record(issued.serial_number)
    assert record.revocation.reason == pb.REVOCATION_REASON_KEY_COMPROMISE


def test_the_command_says_what_is_wrong(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--serial", "abc") == 3
    assert "REVOCATION_DENIED" in capsys.readouterr().err
    (tmp_path / "cert.pem").write_text("nothing")
    assert command("--certificate", str(tmp_path / "cert.pem")) == 2
    for wrong in (
        (),
        ("--serial", "1", "--certificate", "x"),
        ("--serial", "1", "--key", "x"),
        ("--serial", "1", "--reason", "because"),
    ):
        with pytest.raises(SystemExit) as caught:
            command(*wrong)
        assert caught.value.code == 2
