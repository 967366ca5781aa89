"""The issuer's succession by AdminService, from the CSR to the end of the old root."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import Message
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1 import certificate_service_pb2 as pb
from support.service import Service, ServiceFactory, make_root, sign_intermediate


@pytest.fixture
def running(service_factory: ServiceFactory) -> Iterator[Service]:
    with service_factory.start(workers=2) as started:
        yield started


def call(service: Service, name: str, request: Message) -> Message:
    rpc: Callable[..., Message] = getattr(service.admin, name)
    return rpc(request, timeout=20, metadata=service.admin_metadata)


def refusal(service: Service, name: str, request: Message) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(service, name, request)
    return caught.value.code(), caught.value.details() or ""


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.05)


def rotation(service: Service) -> admin_pb.Rotation:
    found = call(service, "GetRotation", admin_pb.GetRotationRequest())
    assert isinstance(found, admin_pb.Rotation)
    return found


def text(*certificates: x509.Certificate) -> str:
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in certificates)


def test_an_issuer_succeeds_another_below_a_new_root(running: Service) -> None:
    role = running.put_role({"spiffe": "own", "ttl": "1h"})
    running.wait_until_everywhere(role)
    before = rotation(running)
    assert (before.step, before.active, before.next) == (
        admin_pb.ROTATION_STEP_NONE, "issuer-1", "",
    )  # fmt: skip
    assert not before.automatic
    assert "'issuer-1' ends at" in before.description

    # Asked twice, one key.
    prepared = [call(running, "PrepareIssuer", admin_pb.PrepareIssuerRequest()) for _ in range(2)]
    csr, again = (x509.load_pem_x509_csr(one.csr.encode()) for one in prepared)
    name = prepared[0].issuer.name
    assert csr.public_key() == again.public_key()
    assert re.fullmatch(r"issuer-20[0-9]{6}", name)
    assert name == prepared[1].issuer.name
    assert prepared[0].issuer.state == admin_pb.ISSUER_STATE_PENDING
    assert rotation(running).step == admin_pb.ROTATION_STEP_IMPORT

    key, root = make_root()
    code, details = refusal(
        running, "ImportIssuer", admin_pb.ImportIssuerRequest(certificates=text(root))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "No certificate has the key" in details
    code, details = refusal(
        running, "ImportIssuer", admin_pb.ImportIssuerRequest(certificates="nothing")
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT

    signed = sign_intermediate(csr, key, root, timedelta(days=500))
    imported = call(
        running, "ImportIssuer", admin_pb.ImportIssuerRequest(certificates=text(signed, root))
    )
    assert imported.state == admin_pb.ISSUER_STATE_NEXT
    assert imported.HasField("publish_time")
    assert not imported.HasField("activate_time")
    waiting = rotation(running)
    assert (waiting.step, waiting.next) == (admin_pb.ROTATION_STEP_WAIT, name)
    assert waiting.automatic
    code, details = refusal(running, "ActivateIssuer", admin_pb.ActivateIssuerRequest())
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "has to be published until" in details

    active = call(running, "ActivateIssuer", admin_pb.ActivateIssuerRequest(at_once=True))
    assert (active.name, active.state) == (name, admin_pb.ISSUER_STATE_ACTIVE)

    def is_everywhere() -> bool:
        issued = []
        for _ in range(6 * running.workers):
            with running.new_channel() as channel:
                answer = running.stub_of(channel).Issue(
                    pb.IssueRequest(role=role),
                    timeout=10,
                    metadata=running.metadata(running.token()),
                )
                issued.append(answer.chain[0] == text(signed))
        return all(issued)

    until(is_everywhere)
    old = call(running, "GetIssuer", admin_pb.GetIssuerRequest(name="issuer-1"))
    assert old.state == admin_pb.ISSUER_STATE_RETIRED
    assert old.retire_time == active.activate_time

    code, details = refusal(running, "RemoveIssuer", admin_pb.RemoveIssuerRequest(name="issuer-1"))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "may live until" in details
    code, details = refusal(running, "RemoveIssuer", admin_pb.RemoveIssuerRequest(name=name))
    assert "Activate another one first" in details
    code, _ = refusal(running, "RemoveIssuer", admin_pb.RemoveIssuerRequest(name="issuer-9"))
    assert code is grpc.StatusCode.NOT_FOUND
    removed = call(
        running, "RemoveIssuer", admin_pb.RemoveIssuerRequest(name="issuer-1", at_once=True)
    )
    assert removed.state == admin_pb.ISSUER_STATE_GONE
    with running.new_channel() as channel:
        stub = running.stub_of(channel)
        until(
            lambda: (
                list(stub.GetChain(pb.GetChainRequest(), timeout=5).trust_bundle) == [text(root)]
            )
        )
    changes = [line["change"] for line in running.log_lines() if "change" in line]
    assert [change for change in changes if change.startswith("issuer ")] == [
        f"issuer {name} prepared", f"issuer {name} prepared", f"issuer {name} imported as next",
        f"issuer {name} activated at once", "issuer issuer-1 removed at once",
    ]  # fmt: skip


def test_commands_take_the_names_of_several_issuers(running: Service) -> None:
    # As the service sees it nothing is due for a year; as the commands do, everything is.
    config = yaml.safe_load(running.config_path.read_text())
    config["rotation"] = {"prepare_before": "1000d", "activate_before": "450d"}
    due = running.directory / "due.yaml"
    due.write_text(yaml.safe_dump(config))

    def rotate(*arguments: object) -> str:
        done = running.meshmintd("ca", "rotate", "-c", due, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name, days in (("mesh-short", 500), ("mesh-long", 600)):
        csr = x509.load_pem_x509_csr(rotate("--name", name).encode())
        signed = running.directory / f"{name}.pem"
        certificate = sign_intermediate(csr, running.root_key, running.root, timedelta(days=days))
        signed.write_text(text(certificate, running.root))
        shown = rotate("--name", name, signed)
        assert shown.startswith(f"Issuer      {name} (next)")
        # One that has not signed yet can have another certificate.
        again = x509.load_pem_x509_csr(rotate("--name", name).encode())
        assert again.public_key() == csr.public_key()
    assert rotate().startswith("Issuer      mesh-long (active)")
    for arguments in (("--activate", "mesh-short"), ("--status",)):
        done = running.meshmintd("ca", "rotate", "-c", due, "--name", "x", *arguments)
        assert done.returncode == 2


def test_commands_do_the_next_step_and_say_what_comes_then(running: Service) -> None:
    def rotate(*arguments: object) -> tuple[int, str, str]:
        done = running.meshmintd("ca", "rotate", "-c", running.config_path, *arguments)
        return done.returncode, done.stdout, done.stderr

    status, csr, said = rotate()
    assert status == 0, said
    assert "waits for its certificate" in said
    status, again, _ = rotate()
    request = x509.load_pem_x509_csr(csr.encode())
    assert request.public_key() == x509.load_pem_x509_csr(again.encode()).public_key()

    key, root = make_root()
    signed = running.directory / "next.pem"
    certificate = sign_intermediate(request, key, root, timedelta(days=500))
    signed.write_text(text(certificate, root))
    status, shown, said = rotate(signed)
    assert status == 0, said
    assert "(next)" in shown
    assert "is published, and signs from" in said
    # Its time has not come, whoever asks.
    assert rotate()[:2] == (0, "")
    status, _, said = rotate("--activate")
    assert status == 1
    assert "has to be published until" in said
    assert '"step": "wait"' in rotate("--status", "--json")[1]
    status, shown, said = rotate("--activate", "--at-once")
    assert status == 0, said
    assert "(active)" in shown

    done = running.meshmintd("ca", "remove", "-c", running.config_path, "issuer-1")
    assert done.returncode == 1
    assert "may live until" in done.stderr
    done = running.meshmintd("ca", "remove", "-c", running.config_path, "issuer-1", "--at-once")
    assert "(gone)" in done.stdout
    assert rotate("--status", "--activate")[0] == 2
    assert rotate("--at-once")[0] == 2
