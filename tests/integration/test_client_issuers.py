"""An issuer and its successor through the client and `meshmint`, against a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint import (
    AdminClient,
    AsyncAdminClient,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
)
from meshmint.cli import main
from support.service import ADMIN, Service, ServiceFactory, sign_intermediate


@pytest.fixture
def running(service_factory: ServiceFactory) -> Iterator[Service]:
    with service_factory.start() as started:
        yield started


@pytest.fixture
def meshmint(running: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """What the command finds in its environment."""
    monkeypatch.setenv("MESHMINT_SERVER", running.address)
    monkeypatch.setenv("MESHMINT_CA_FILE", str(running.ca_file))
    monkeypatch.setenv("MESHMINT_TOKEN", running.token(*ADMIN))
    monkeypatch.delenv("MESHMINT_TOKEN_FILE", raising=False)
    return running


def signed(service: Service, csr_pem: str, days: int = 500) -> str:
    """The CSR's certificate and the root."""
    csr = x509.load_pem_x509_csr(csr_pem.encode())
    certificate = sign_intermediate(csr, service.root_key, service.root, timedelta(days=days))
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in (certificate, service.root))


async def test_both_clients_take_an_issuer_through_its_life(running: Service) -> None:
    token = running.token(*ADMIN)
    with AdminClient(running.address, token=token, root_certificates=running.ca_file) as client:
        rotation = client.get_rotation()
        assert (rotation.step, rotation.active, rotation.next) == ("none", "issuer-1", "")
        assert rotation.due_time
        assert not rotation.is_automatic
        assert "'issuer-1' ends at" in rotation.description
        first = client.get_issuer("issuer-1")
        assert first.activate_time
        assert first.publish_time
        prepared = client.prepare_issuer("mesh-2", algorithm="ec-p384", common_name="Two")
        assert (prepared.issuer.name, prepared.issuer.state) == ("mesh-2", "pending")
        csr = x509.load_pem_x509_csr(prepared.csr_pem.encode())
        assert csr.public_key().curve.name == "secp384r1"  # type: ignore[union-attr]
        assert "CN=Two" in csr.subject.rfc4514_string()
        with pytest.raises(InvalidArgument) as refused:
            client.import_issuer(running.ca_file.read_text(), name="mesh-2")
        assert refused.value.violations
        assert client.import_issuer(signed(running, prepared.csr_pem)).state == "next"
        assert client.get_rotation().next == "mesh-2"
        assert client.activate_issuer("mesh-2").state == "active"
        with pytest.raises(FailedPrecondition):
            client.remove_issuer("issuer-1")
        assert client.get_issuer("issuer-1").retire_time
    async with AsyncAdminClient(
        running.address, token=token, root_certificates=running.ca_file
    ) as again:
        prepared = await again.prepare_issuer("mesh-3")
        imported = await again.import_issuer(signed(running, prepared.csr_pem, 600), name="mesh-3")
        assert imported.state == "next"
        assert (await again.get_rotation()).next == "mesh-3"
        assert (await again.activate_issuer("mesh-3", at_once=True)).state == "active"
        assert (await again.remove_issuer("mesh-2", at_once=True)).state == "gone"
        with pytest.raises(NotFound):
            await again.activate_issuer("mesh-9")
    with (
        AdminClient(
            running.address, token=running.token(), root_certificates=running.ca_file
        ) as stranger,
        pytest.raises(PermissionDenied),
    ):
        stranger.prepare_issuer()


def test_the_command_takes_an_issuer_through_its_life(
    meshmint: Service, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(*arguments: str, status: int = 0) -> tuple[str, str]:
        assert main(arguments) == status
        return capsys.readouterr()

    assert "'issuer-1' ends at" in run("rotate", "--status")[0]
    csr, said = run("rotate", "--name", "mesh-2")
    assert "'mesh-2' waits for its certificate" in said
    again = json.loads(run("rotate", "--json")[0])
    assert again["issuer"] == "mesh-2"
    assert (
        x509.load_pem_x509_csr(again["csr"].encode()).public_key()
        == x509.load_pem_x509_csr(csr.encode()).public_key()
    )
    file = tmp_path / "issuer.pem"
    # A file may hold more than it should: a key that is in it does not travel.
    file.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with file.open("a") as output:
        output.write(signed(meshmint, csr))
    shown, said = run("rotate", str(file))
    assert "mesh-2  next " in shown
    assert "is published" in said
    rows, said = run("issuers")
    assert [line.split()[:2] for line in rows.splitlines()[1:]] == [
        ["issuer-1", "active"], ["mesh-2", "next"],
    ]  # fmt: skip
    assert "is published" in said
    documents = [json.loads(line) for line in run("issuers", "--json")[0].splitlines()]
    assert [one["name"] for one in documents] == ["issuer-1", "mesh-2"]
    certificate, _ = run("issuers", "mesh-2")
    assert certificate == signed_part(file.read_text())
    assert json.loads(run("issuers", "mesh-2", "--json")[0])["certificate"] == certificate
    assert json.loads(run("rotate", "--activate", "mesh-2", "--json")[0])["state"] == "active"
    assert json.loads(run("rotate", "--status", "--json")[0])["active"] == "mesh-2"
    assert "may live until" in run("rotate", "--remove", "issuer-1", status=3)[1]
    assert "issuer-1  gone " in run("rotate", "--remove", "issuer-1", "--at-once")[0]
    for wrong in (
        ("--at-once",), ("--status", "x.pem"), ("--activate", "a", "--name", "b"),
        ("--activate", "a", "--remove", "b"),
    ):  # fmt: skip
        with pytest.raises(SystemExit) as refused:
            main(["rotate", *wrong])
        assert refused.value.code == 2


def signed_part(pem: str) -> str:
    """The first certificate in it."""
    start = pem.index("-----BEGIN CERTIFICATE-----")
    end = "-----END CERTIFICATE-----\n"
    return pem[start : pem.index(end, start) + len(end)]
