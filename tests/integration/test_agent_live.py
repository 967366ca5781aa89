"""The agent while the service is away or changes, and as workloads see both through its socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from support.agent import AgentProcess
from support.service import Service

AUDIENCE = "https://api.example.org"
CLIENT = Path(__file__).parents[1] / "support" / "spiffe_client.py"
LOUDER = ["warning", "error", "critical"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One of its own, for tests that take it away."""
    service = Service(tmp_path_factory.mktemp("live"), workers=1, jwt_svid={"enabled": True})
    service.start()
    try:
        role = {"spiffe": "own", "key_type": "any", "max_ttl": "2h"}
        service.put_named_role("agent", {**role, "jwt_svid": {"audiences": [AUDIENCE]}})
        yield service
    finally:
        service.stop()


@pytest.fixture
def agent(running: Service, tmp_path: Path) -> Iterator[AgentProcess]:
    made = AgentProcess(tmp_path / "agent", running.address, running.ca_file)
    made.token_file.write_text(running.token())
    yield made
    made.stop()


def certificate(directory: Path, ttl: str) -> dict[str, Any]:
    output = {"format": "pem", "directory": str(directory / "out")}
    renewal = {"fraction": 0.4, "jitter": 0}  # so that there is time for every loudness
    return {
        "name": "web", "role": "agent", "ttl": ttl, "outputs": [output], "renewal": renewal
    }  # fmt: skip


def serial(directory: Path) -> str:
    found = x509.load_pem_x509_certificate((directory / "out/cert.pem").read_bytes())
    return f"{found.serial_number:x}"


def test_a_service_that_is_away_for_longer_than_the_lifetime_is_told_louder_and_outlived(
    running: Service, agent: AgentProcess, tmp_path: Path
) -> None:
    agent.write_config(
        certificates=[certificate(tmp_path, "12s")],
        server={**agent.config["server"], "timeout": "500ms"},
    )
    with agent.running():
        agent.wait_for("every certificate is there")
        running.stop()
        try:
            agent.wait_for("the certificate EXPIRED")
            last = serial(tmp_path)
            told = [line for line in agent.lines() if "failures" in line]
            levels = [line["level"] for line in told]
            assert levels == sorted(levels, key=LOUDER.index)
            assert levels[-1] == "critical"
            assert len(set(levels)) > 1
            code, why = agent.get("/ready")
            assert code == 503
            assert "the certificate has expired" in why
            # What was written stays: its users see its end by themselves.
            assert serial(tmp_path) == last
        finally:
            running.start()
        agent.wait_until(lambda: serial(tmp_path) != last, "renewed")
        agent.wait_until(lambda: agent.get("/ready")[0] == 200, "ready")
        assert not agent.events("a bug")


def test_a_restart_while_the_service_is_away_serves_what_is_kept(
    running: Service, agent: AgentProcess, tmp_path: Path
) -> None:
    agent.write_config(certificates=[certificate(tmp_path, "1h")])
    assert agent.command("--once").returncode == 0
    kept = serial(tmp_path)
    (tmp_path / "out/..data").unlink()
    running.stop()
    try:
        with agent.running():
            agent.wait_for("every certificate is there")
            assert serial(tmp_path) == kept
            agent.wait_for("the trust bundle cannot be watched")
    finally:
        running.start()


def test_a_new_trust_bundle_is_written_at_once_without_a_new_certificate(
    running: Service, agent: AgentProcess, tmp_path: Path
) -> None:
    reacted = tmp_path / "reacted"
    web = certificate(tmp_path, "1h")
    web["after_change"] = [{"command": ["/bin/sh", "-c", f"echo again >> {reacted}"]}]
    agent.write_config(certificates=[web])
    with agent.running():
        agent.wait_for("every certificate is there")
        before = serial(tmp_path)
        agent.wait_until(reacted.exists, "reacted")
        root = running.add_issuer("issuer-2")
        bundle = tmp_path / "out/bundle.pem"
        agent.wait_until(
            lambda: root in x509.load_pem_x509_certificates(bundle.read_bytes()), "written"
        )
        agent.wait_until(lambda: reacted.read_text().split() == ["again"] * 2, "reacted again")
        assert serial(tmp_path) == before
        assert len(agent.events("certificate obtained")) == 1


def test_workloads_get_svids_tokens_and_every_renewal_from_the_agents_socket(
    agent: AgentProcess, tmp_path: Path
) -> None:
    path = tmp_path / "run" / "agent.sock"
    path.parent.mkdir()
    agent.write_config(
        certificates=[certificate(tmp_path, "8s")], sockets=[{"path": str(path), "mode": "0600"}]
    )
    own = "spiffe://mesh.example/ns/shop/sa/cart"
    with agent.running():
        agent.wait_for("every certificate is there")
        with subprocess.Popen(
            [sys.executable, str(CLIENT), f"unix://{path}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client:

            def ask(*question: object) -> Any:
                assert client.stdin is not None
                assert client.stdout is not None
                client.stdin.write(json.dumps(question) + "\n")
                client.stdin.flush()
                return json.loads(client.stdout.readline())

            first = ask("watch")["answer"]
            assert first["spiffe_id"] == own
            assert first["key_fits"]
            token = ask("jwt", AUDIENCE)["answer"]
            assert token["spiffe_id"] == own
            assert ask("validate", token["token"], AUDIENCE)["answer"] == {"spiffe_id": own}
            assert "error" in ask("jwt", "https://elsewhere.example")
            assert ask("next", first["serial"])["answer"]["serial"] != first["serial"]
            ask("close")
        assert token["token"] not in agent.log_path.read_text()
    assert not path.exists()
