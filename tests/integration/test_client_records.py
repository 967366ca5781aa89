"""`meshmint records` against a real server: what an operator sees of what was issued."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from cryptography import x509
from meshmint.cli import main
from meshmint.v1 import certificate_service_pb2 as pb
from support.service import ADMIN, Service


@pytest.fixture(autouse=True)
def environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHMINT_SERVER", service.address)
    monkeypatch.setenv("MESHMINT_CA_FILE", str(service.ca_file))
    monkeypatch.setenv("MESHMINT_TOKEN", service.token(*ADMIN))
    monkeypatch.delenv("MESHMINT_TOKEN_FILE", raising=False)


@pytest.fixture
def role(service: Service) -> str:
    return service.put_role(
        {"spiffe": "none", "allow_any_name": True, "require_cn": False, "key_type": "ec"}
    )


def issue(service: Service, role: str, name: str, count: int = 1) -> list[str]:
    request = pb.IssueRequest(role=role, names=pb.CertificateNames(dns_names=[name]))
    return [service.issue(request).serial_number for _ in range(count)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    assert main(["records", *arguments]) == 0
    out, err = capsys.readouterr()
    return out.splitlines(), err


def serials(lines: Sequence[str]) -> list[str]:
    return [json.loads(line)["serial_number"] for line in lines]


def test_every_option_chooses_what_its_filter_means(
    service: Service, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{role}.example.org"
    [serial] = issue(service, role, name)
    record = service.get_record(serial)
    issue(service, role, f"other.{name}")
    svid = service.issue(pb.IssueRequest(role=service.put_role({"spiffe": "own"})))
    created = record.create_time.ToJsonString()
    expires = record.not_after.ToJsonString()
    for option, value in (
        ("--name", name.upper()),
        ("--caller", record.caller),
        ("--authenticator", record.authenticator),
        ("--role", role),
        ("--issuer", record.issuer),
        ("--created-from", created),
        ("--expires-from", expires),
    ):
        lines, _ = run(capsys, option, value, "--limit", "1000", "--json")
        assert serial in serials(lines), option
        assert (svid.serial_number in serials(lines)) is (option not in ("--name", "--role")), (
            option
        )
    for option, value in (("--created-before", created), ("--expires-before", expires)):
        lines, _ = run(capsys, option, value, "--role", role, "--json")
        assert lines == [], option
    lines, _ = run(capsys, "--name", name, "--role", role, "--json")
    assert serials(lines) == [serial]
    own = json.loads(run(capsys, "--spiffe-id", svid.spiffe_id, "--json", "--limit", "1")[0][0])
    assert own["spiffe_id"] == svid.spiffe_id


def test_the_table_has_a_line_a_record_newest_first_and_says_if_there_are_more(
    service: Service, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{role}.example.org"
    first, second, third = issue(service, role, name, 3)
    lines, told = run(capsys, "--role", role, "--limit", "2")
    assert [line.split()[:1] for line in lines[:1]] == [["RECORDED"]]
    assert [third in lines[1], second in lines[2], len(lines)] == [True, True, 3]
    assert f"DNS:{name}" in lines[1]
    assert "more than 2" in told
    lines, told = run(capsys, "--role", role, "--limit", "3")
    assert first in lines[3]
    assert told == ""
    assert run(capsys, "--role", f"{role}x") == ([], "")


def test_a_long_list_is_read_page_by_page(
    service: Service, role: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = issue(service, role, "paged.example.org", 5)
    monkeypatch.setattr("meshmint.cli.records._LARGEST_PAGE", 2)
    for limit in (1, 2, 3, 4, 5, 6):
        lines, told = run(capsys, "--role", role, "--limit", str(limit), "--json")
        assert serials(lines) == made[::-1][:limit]
        assert bool(told) is (limit < 5)


def test_one_record_is_found_by_its_serial_with_its_certificate(
    service: Service, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [serial] = issue(service, role, "one.example.org")
    lines, _ = run(capsys, serial.upper())
    certificate = x509.load_pem_x509_certificate("\n".join(lines).encode())
    assert f"{certificate.serial_number:x}" == serial
    found = json.loads(run(capsys, serial, "--json")[0][0])
    assert found["names"] == ["DNS:one.example.org"]
    assert found["certificate"].startswith("-----BEGIN CERTIFICATE-----")


def test_a_revoked_certificate_is_shown_as_such(
    service: Service, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    revoked, other = issue(service, role, "revoked.example.org", 2)
    reason = pb.REVOCATION_REASON_KEY_COMPROMISE
    service.stub.Revoke(
        pb.RevokeRequest(serial_number=revoked, reason=reason),
        timeout=10, metadata=service.admin_metadata,
    )  # fmt: skip
    lines, _ = run(capsys, "--role", role)
    assert ["key-compromise" in line for line in lines[1:]] == [False, True]
    assert json.loads(run(capsys, revoked, "--json")[0][0])["revocation_time"].endswith("Z")
    assert json.loads(run(capsys, other, "--json")[0][0])["revocation_time"] is None


def test_wrong_usage_and_refusals_have_their_statuses(
    service: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["--limit", "0"], ["--limit", "x"], ["3f", "--role", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(["records", *arguments])
        assert caught.value.code == 2
    assert main(["records", "3f"]) == 3
    monkeypatch.setenv("MESHMINT_TOKEN", service.token())
    assert main(["records"]) == 3
    assert "NOT_AN_ADMIN" in capsys.readouterr().err
