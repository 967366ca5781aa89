"""`meshmint agent` against a real service: a process, a configuration file, and signals."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from support.agent import AgentProcess, meshmint
from support.service import Service, make_root
from support.token_issuer import replace_file


@pytest.fixture(scope="session")
def agent_role(service: Service) -> str:
    """A role for X509-SVIDs with any kind of key."""
    name = service.put_role({"spiffe": "own", "key_type": "any", "ttl": "1h", "max_ttl": "2h"})
    service.wait_until_everywhere(name)
    return name


@pytest.fixture
def agent(service: Service, agent_role: str, tmp_path: Path) -> Iterator[AgentProcess]:
    """One that keeps one certificate of an hour, and writes it to `out`."""
    made = AgentProcess(
        tmp_path / "agent",
        service.address,
        service.ca_file,
        certificates=[web(agent_role, tmp_path)],
    )
    made.token_file.write_text(service.token())
    yield made
    made.stop()


def web(role: str, directory: Path, **fields: Any) -> dict[str, Any]:
    output = {"format": "pem", "directory": str(directory / "out")}
    return {"name": "web", "role": role, "outputs": [output], **fields}


def read_serial(directory: Path) -> str:
    certificate = x509.load_pem_x509_certificate((directory / "out/cert.pem").read_bytes())
    return f"{certificate.serial_number:x}"


def test_a_certificate_is_there_verifies_and_its_key_is_its_own(
    service: Service, agent: AgentProcess, tmp_path: Path
) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        out = tmp_path / "out"
        checked = subprocess.run(
            [
                *("openssl", "verify", "-x509_strict", "-CAfile", "bundle.pem"),
                *("-untrusted", "chain.pem", "cert.pem"),
            ],
            cwd=out,
            capture_output=True,
            text=True,
            check=False,
        )
        assert checked.stdout == "cert.pem: OK\n", checked.stderr
        key = load_pem_private_key((out / "key.pem").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((out / "cert.pem").read_bytes())
        assert key.public_key() == certificate.public_key()
        assert stat.S_IMODE((out / "key.pem").stat().st_mode) == 0o600
        assert service.get_record(read_serial(tmp_path)).serial_number == read_serial(tmp_path)
        assert agent.stop() == 0
    log = agent.log_path.read_text()
    assert agent.token_file.read_text() not in log
    assert "PRIVATE KEY" not in log


def test_what_the_agent_keeps_is_for_itself_alone(agent: AgentProcess) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        assert agent.process is not None
        limits = Path(f"/proc/{agent.process.pid}/limits").read_text()
        # A core file would hold the keys.
        assert re.search(r"^Max core file size +0 ", limits, re.MULTILINE)
        found = [agent.state, *agent.state.rglob("*")]
        assert agent.state / "certificates" / "web.json" in found
        for path in found:
            if not path.is_symlink():
                assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_certificates_are_renewed_by_themselves_each_with_a_new_key(
    agent: AgentProcess, agent_role: str, tmp_path: Path
) -> None:
    reacted = tmp_path / "reacted"
    agent.write_config(
        certificates=[
            web(
                agent_role,
                tmp_path,
                ttl="4s",
                after_change=[
                    {"command": ["/bin/sh", "-c", f"echo $MESHMINT_SERIAL >> {reacted}"]}
                ],
            )
        ]
    )
    with agent.running():
        obtained = agent.wait_for("certificate obtained", 3)
        serials = [line["serial"] for line in obtained]
        assert len(set(serials)) == len(serials)
        agent.wait_until(lambda: reacted.exists() and len(reacted.read_text().split()) >= 2)
        assert set(reacted.read_text().split()) <= {
            line["serial"] for line in agent.events("certificate obtained")
        }


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_restart_keeps_what_is_good_and_asks_for_nothing(
    service: Service, agent: AgentProcess, tmp_path: Path, end: str
) -> None:
    agent.write_config()
    agent.start()
    agent.wait_for("every certificate is there")
    serial = read_serial(tmp_path)
    getattr(agent, end)()
    # What somebody broke meanwhile is mended from what is kept.
    (tmp_path / "out/..data").unlink()
    with agent.running():
        agent.wait_for("every certificate is there", 2)
        assert read_serial(tmp_path) == serial
        assert len(agent.events("certificate obtained")) == 1
        assert agent.events("kept certificate is still good", serial=serial)


@pytest.mark.parametrize(
    "change",
    [{"key": "ed25519"}, {"names": {"uris": ["spiffe://mesh.example/ns/shop/sa/cart"]}}],
    ids=["key", "names"],
)
def test_a_restart_with_another_wish_asks_for_another_certificate(
    agent: AgentProcess, agent_role: str, tmp_path: Path, change: dict[str, Any]
) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
    first = read_serial(tmp_path)
    agent.write_config(certificates=[web(agent_role, tmp_path, **change)])
    with agent.running():
        agent.wait_for("certificate obtained", 2)
        agent.wait_until(lambda: read_serial(tmp_path) != first)


def test_a_damaged_state_costs_one_new_certificate_and_nothing_else(
    agent: AgentProcess, tmp_path: Path
) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
    kept = agent.state / "certificates" / "web.json"
    kept.write_text(kept.read_text()[:-40])
    with agent.running():
        agent.wait_for("the kept certificate cannot be used")
        agent.wait_for("every certificate is there", 2)
        assert len(agent.events("certificate obtained")) == 2


def test_sighup_begins_what_is_new_and_leaves_alone_what_is_good(
    agent: AgentProcess, agent_role: str, tmp_path: Path
) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        serial = read_serial(tmp_path)
        both = [web(agent_role, tmp_path), {"name": "second", "role": agent_role}]
        agent.write_config(certificates=both)
        agent.reload()
        agent.wait_for("certificate obtained", certificate="second")
        agent.wait_for("configuration read again", certificates=2)
        agent.write_config(certificates=[web(agent_role, tmp_path)])
        agent.reload()
        agent.wait_for("configuration read again", certificates=1)
        assert set(agent.status()) == {"web"}
        assert agent.serial() == serial == read_serial(tmp_path)
        assert len(agent.events("certificate obtained")) == 2


def test_a_configuration_that_cannot_be_used_changes_nothing_on_sighup(
    agent: AgentProcess, tmp_path: Path
) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        whole = agent.path.read_text()
        agent.path.write_text(whole.replace("role:", "rolle:"))
        agent.reload()
        (told,) = agent.wait_for("the configuration is left as it was")
        assert "certificates[web].rolle: there is no such field" in told["error"]
        agent.path.write_text(whole.replace(str(agent.state), str(tmp_path / "elsewhere")))
        agent.reload()
        *_, told = agent.wait_for("the configuration is left as it was", 2)
        assert "state_dir cannot change while the agent runs" in told["error"]
        assert agent.get("/ready") == (200, "ready\n")


def test_a_token_that_is_missing_empty_or_expired_is_told_until_it_is_replaced(
    service: Service, agent: AgentProcess
) -> None:
    agent.token_file.unlink()
    with agent.running():
        (told, *_) = agent.wait_for("there is no certificate", reason="TOKEN_UNAVAILABLE")
        assert "cannot read the token file" in told["error"]
        agent.token_file.write_text("")
        agent.wait_until(
            lambda: any("is empty" in line["error"] for line in agent.events("there is no")), "told"
        )
        assert "is empty" in agent.status()["web"]["last_error"]
        assert agent.get("/ready")[0] == 503
        replace_file(agent.token_file, service.token(exp=int(time.time()) - 600).encode())
        agent.reload()
        agent.wait_for("there is no certificate", reason="CREDENTIAL_EXPIRED")
        replace_file(agent.token_file, service.token().encode())
        agent.reload()  # which has it try at once
        agent.wait_for("every certificate is there")
        assert agent.get("/ready") == (200, "ready\n")
        assert agent.status()["web"]["last_error"] == ""


def test_the_token_may_come_from_a_command_or_the_environment(
    service: Service, agent: AgentProcess
) -> None:
    agent.write_config(auth={"command": ["/bin/cat", str(agent.token_file)]})
    assert agent.command("--once").returncode == 0
    agent.write_config(auth={"environment": "AGENT_TOKEN"}, state_dir=f"{agent.state}-2")
    refused = agent.command("--once")
    assert refused.returncode == 2
    assert "AGENT_TOKEN is not set" in refused.stderr
    agent.environment["AGENT_TOKEN"] = service.token()
    assert agent.command("--once").returncode == 0


def test_a_second_agent_on_one_state_directory_is_refused(agent: AgentProcess) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        assert agent.process is not None
        second = agent.command("--once")
        assert second.returncode == 2
        assert f"another agent (process {agent.process.pid}) works in {agent.state}" in (
            second.stderr
        )
        assert "Traceback" not in second.stderr
        assert agent.get("/ready") == (200, "ready\n")


def test_a_second_agent_on_one_output_writes_nothing_there_until_the_first_is_gone(
    service: Service, agent: AgentProcess, tmp_path: Path
) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        serial = read_serial(tmp_path)
        other = AgentProcess(
            tmp_path / "other",
            service.address,
            service.ca_file,
            certificates=agent.config["certificates"],
        )
        other.token_file.write_text(service.token())
        with other.running():
            (told,) = other.wait_for("not delivered")
            assert "only one may" in told["error"]
            assert read_serial(tmp_path) == serial
            agent.stop()
            other.wait_for("every certificate is there")
            assert read_serial(tmp_path) == other.serial() != serial


def test_a_disk_that_hangs_keeps_no_agent_from_ending(agent: AgentProcess) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
    # A pipe that nobody writes to stands for it: whoever opens it waits for ever.
    hanging = agent.directory / "hanging.pem"
    os.mkfifo(hanging)
    agent.write_config(server=agent.config["server"] | {"ca_file": str(hanging)})
    code = (
        "import sys, meshmint.cli.agent as agent; agent._LAST_SECONDS = 1.0; "
        "from meshmint.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", code, "agent", "-c", str(agent.path)]
    with agent.log_path.open("ab") as log:
        agent.process = subprocess.Popen(command, stdout=log, stderr=log)
    agent.wait_for("every certificate is there", 2)
    assert agent.stop() == 0
    assert "something hangs, perhaps a disk" in agent.log_path.read_text()


def test_once_gets_what_is_missing_and_nothing_that_is_good(
    agent: AgentProcess, tmp_path: Path
) -> None:
    agent.write_config()
    assert agent.command("--once").returncode == 0
    serial = read_serial(tmp_path)
    assert agent.command("--once").returncode == 0
    assert read_serial(tmp_path) == serial


def test_the_trouble_of_one_certificate_is_no_trouble_of_another(
    agent: AgentProcess, agent_role: str, tmp_path: Path
) -> None:
    forbidden = {"name": "forbidden", "role": "no-such-role"}
    blocked = web(agent_role, tmp_path, name="blocked")
    blocked["outputs"] = [{"format": "pem", "directory": "/proc/no/such/place"}]
    agent.write_config(certificates=[forbidden, blocked, web(agent_role, tmp_path)])
    once = agent.command("--once")
    assert once.returncode == 3
    assert read_serial(tmp_path)
    with agent.running():
        agent.wait_for("there is no certificate", 2, certificate="forbidden")
        agent.wait_until(lambda: agent.status()["web"]["delivered"], "delivered")
        status = agent.status()
        assert "PERMISSION_DENIED" in status["forbidden"]["last_error"]
        assert "/proc/no: cannot make" in status["blocked"]["delivery_error"]
        missing = json.loads(agent.get("/ready")[1])["not_ready"]
        assert set(missing) == {"forbidden", "blocked"}


def test_the_service_may_make_the_key(agent: AgentProcess, agent_role: str, tmp_path: Path) -> None:
    agent.write_config(certificates=[web(agent_role, tmp_path, key_from="service", key="ec-p384")])
    assert agent.command("--once").returncode == 0
    key = load_pem_private_key((tmp_path / "out/key.pem").read_bytes(), None)
    assert key.public_key() == (
        x509.load_pem_x509_certificate((tmp_path / "out/cert.pem").read_bytes()).public_key()
    )
    assert key.key_size == 384  # type: ignore[union-attr]


def test_check_says_what_would_be_done_and_does_none_of_it(
    agent: AgentProcess, tmp_path: Path
) -> None:
    agent.write_config()
    checked = agent.command("--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "answers: trust domain mesh.example" in checked.stdout
    assert "there is a token, which expires in" in checked.stdout
    assert "would be made" in checked.stdout
    assert "a new one would be asked for" in checked.stdout
    assert f"{tmp_path}/out would be written; {tmp_path}/out would be made" in checked.stdout
    assert not agent.state.exists()
    assert not (tmp_path / "out").exists()
    agent.command("--once")
    checked = agent.command("--check")
    assert checked.returncode == 0
    assert "spiffe://mesh.example/ns/shop/sa/cart is kept, for" in checked.stdout


def test_check_finds_every_fault_at_once(
    service: Service, agent: AgentProcess, tmp_path: Path
) -> None:
    agent.token_file.write_text(service.token(exp=int(time.time()) - 600))
    agent.state.mkdir(mode=0o755)
    (tmp_path / "locked").mkdir(mode=0o777)
    (tmp_path / "locked").chmod(0o777)
    outputs = [
        {"format": "pem", "directory": str(tmp_path / "out"), "owner": "nobody-knows-him"},
        {"format": "pem", "directory": str(tmp_path / "locked")},
        {"format": "template", "destination": str(tmp_path / "t/x"), "template": "{{ name"},
    ]
    agent.write_config(
        certificates=[
            {"name": "web", "outputs": outputs, "after_change": [{"command": ["no-such-thing"]}]}
        ],
        sockets=[{"path": "/nowhere/at/all.sock"}],
        server={"address": "127.0.0.1:1", "ca_file": str(service.ca_file), "timeout": "1s"},
    )
    checked = agent.command("--check")
    assert checked.returncode == 1
    assert checked.stdout.count("FAULT:") == 8
    assert "there is no user 'nobody-knows-him' here" in checked.stdout
    assert f"{tmp_path}/locked: " in checked.stdout
    assert "line 1 is no template" in checked.stdout
    assert "the command no-such-thing: there is no such program" in checked.stdout
    assert "the directory /nowhere/at is missing" in checked.stdout
    assert "cannot reach 127.0.0.1:1" in checked.stdout
    assert "the token expired 10m" in checked.stdout
    assert f"chmod 0700 {agent.state}" in checked.stdout


def test_a_configuration_that_cannot_be_used_ends_with_status_2_and_every_place(
    agent: AgentProcess,
) -> None:
    agent.write_config(health="0.0.0.0:80", certificates=[{"name": "Web"}])
    ended = agent.command()
    assert ended.returncode == 2
    assert "  certificates[0].name: " in ended.stderr
    assert "  health: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_status_is_a_table_in_a_terminal_and_json_for_programs(agent: AgentProcess) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        serial = agent.serial()
        told = json.loads(agent.command("status", "--json").stdout)
        assert told["certificates"][0]["serial_number"] == serial
        shown = in_terminal("agent", "status", "-c", str(agent.path))
        assert "running" in shown
        assert "spiffe://mesh.example/ns/shop/sa/cart" in shown.replace("\r\n", "")
        assert "█" in shown
        assert "renew in" in shown
        assert "\x1b[" in shown
    ended = agent.command("status")
    assert ended.returncode == 1
    assert "NOT RUNNING" in ended.stdout
    assert serial in ended.stdout
    assert "\x1b[" not in ended.stdout


def in_terminal(*arguments: str) -> str:
    """What the command shows in a terminal of 150 columns."""
    main, other = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "meshmint", *arguments],
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "150", "PYTHONUTF8": "1"},
        stdin=other,
        stdout=other,
        stderr=other,
    )
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait(60) == 0, shown
    return shown.decode()


def test_status_without_an_agent_says_so(agent: AgentProcess) -> None:
    agent.write_config()
    ended = agent.command("status")
    assert ended.returncode == 1
    assert "no agent has run with this configuration yet" in ended.stderr


def test_status_works_without_a_health_address(agent: AgentProcess) -> None:
    del agent.config["health"]
    with agent.running():
        agent.wait_for("every certificate is there")
        assert "agent running" in agent.command("status").stdout


def test_health_and_metrics_tell_the_truth_and_nothing_secret(agent: AgentProcess) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        assert agent.get("/live") == (200, "live\n")
        assert agent.get("/nothing")[0] == 404
        _, metrics = agent.get("/metrics")
        assert 'meshmint_agent_certificate_ready{certificate="web"} 1.0' in metrics
        assert 'meshmint_agent_certificate_renewals_total{certificate="web"} 1.0' in metrics
        assert 'meshmint_agent_bundle_sequence{trust_domain="mesh.example"}' in metrics
        for page in ("/metrics", "/status", "/ready"):
            assert "PRIVATE" not in agent.get(page)[1]


def test_what_a_reaction_has_said_is_for_the_log_alone(
    agent: AgentProcess, agent_role: str, tmp_path: Path
) -> None:
    # Everybody on this machine may ask for the status.
    command = ["/bin/sh", "-c", "echo Authorization: Bearer secret; exit 7"]
    reactions = [{"command": command, "attempts": 1}]
    agent.write_config(certificates=[web(agent_role, tmp_path, after_change=reactions)])
    with agent.running():
        (failed, *_) = agent.wait_for("a reaction has failed")
        assert "it said: Authorization: Bearer secret" in failed["error"]
        agent.wait_until(lambda: "status 7" in agent.status()["web"]["reaction_error"], "told")
        assert all("secret" not in agent.get(page)[1] for page in ("/status", "/ready", "/metrics"))


def test_rubbish_at_the_health_address_harms_nobody(agent: AgentProcess) -> None:
    with agent.running():
        agent.wait_for("every certificate is there")
        host, port = agent.config["health"].split(":")
        for rubbish in (b"\x16\x03\x01\x00\xff\r\n\r\n", b"A" * 20_000, b"GET\r\n\r\n", b""):
            with socket.create_connection((host, int(port)), 10) as stranger:
                stranger.sendall(rubbish)
        silent = [socket.create_connection((host, int(port)), 10) for _ in range(20)]
        assert agent.get("/ready") == (200, "ready\n")
        for one in silent:
            one.close()
        assert not agent.events("a bug")


@pytest.fixture
def systemd() -> Iterator[tuple[socket.socket, str]]:
    """The socket that systemd listens on."""
    with (
        tempfile.TemporaryDirectory(prefix="mmn") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found,
    ):
        path = str(Path(directory) / "notify")
        found.bind(path)
        found.settimeout(60)
        yield found, path


def receive(found: socket.socket, wanted: Callable[[str], bool]) -> list[str]:
    """The messages up to the one that is wanted."""
    messages = []
    while not messages or not wanted(messages[-1]):
        messages.append(found.recv(4096).decode())
    return messages


def test_systemd_is_told_readiness_status_life_reload_and_the_end(
    service: Service, agent: AgentProcess, systemd: tuple[socket.socket, str]
) -> None:
    found, path = systemd
    agent.environment |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "1000000"}
    agent.token_file.write_text("")
    with agent.running():
        before = receive(found, lambda m: m.startswith("STATUS=") and "not ready: web" in m)
        receive(found, lambda m: m == "WATCHDOG=1")
        assert "READY=1" not in before
        agent.token_file.write_text(service.token())
        receive(found, lambda m: m == "READY=1")
        receive(found, lambda m: "1 certificates are good; the first to end is web" in m)
        agent.reload()
        receive(found, lambda m: m.startswith("RELOADING=1\nMONOTONIC_USEC="))
        receive(found, lambda m: m == "READY=1")
        assert agent.stop() == 0
        receive(found, lambda m: m == "STOPPING=1")


def test_roots_that_are_replaced_are_used_without_a_restart(
    service: Service, agent: AgentProcess, tmp_path: Path
) -> None:
    wrong = tmp_path / "roots.pem"
    wrong.write_bytes(make_root()[1].public_bytes(Encoding.PEM))
    agent.config["server"]["ca_file"] = str(wrong)
    with agent.running():
        agent.wait_for("there is no certificate", code="UNAVAILABLE")
        replace_file(wrong, service.ca_file.read_bytes())
        agent.wait_for("every certificate is there")


def test_help_tells_of_what_the_agent_takes_and_of_nothing_else() -> None:
    told = meshmint("agent", "--help").stdout
    assert "MESHMINT_AGENT_CONFIG its configuration" in told
    assert "MESHMINT_TOKEN" not in told  # its token is what its configuration says
    assert "status: 1 no agent runs" in told


def test_without_the_extra_the_command_says_how_to_install_it(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "jinja2.py").write_text("raise ModuleNotFoundError(name='jinja2')")
    ended = subprocess.run(
        [sys.executable, "-m", "meshmint", "agent", "--once"],
        env={**os.environ, "PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "pip install 'meshmint[agent]'" in ended.stderr
