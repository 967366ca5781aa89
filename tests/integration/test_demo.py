"""From nothing: `meshmintd dev` proves itself, keeps its state, and says what it cannot do."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from meshmint_server.cli import main
from meshmint_server.cli.dev.next_steps import next_steps
from meshmint_server.cli.dev.state import StateDirectory
from meshmint_server.cli.dev.token_issuer import ADMIN, WORKLOAD
from support.development import free_pair, meshmintd, run_lines, running_development
from support.programs import program

SPIFFE_ID = "spiffe://example.org/ns/shop/sa/cart"

pytestmark = pytest.mark.timeout(240)


def _once(directory: Path, *arguments: object, **environment: str) -> str:
    done = meshmintd(
        "dev", "--once", "--workers", 1, "--port", free_pair(), *arguments,
        cwd=directory, environment=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _issuer_serial(state: Path) -> int:
    (issuer,) = x509.load_pem_x509_certificates((state / "svid" / "chain.pem").read_bytes())
    return issuer.serial_number


def test_from_nothing_to_a_verified_svid_and_a_restart_keeps_the_state(tmp_path: Path) -> None:
    first = _once(tmp_path)

    assert SPIFFE_ID in first
    assert "inside the token meshmint (SoftHSM" in first
    assert "generated there, sensitive, not extractable, never extractable before" in first
    assert "NOT" not in first
    state = tmp_path / ".meshmint"
    verified = subprocess.run(
        [
            program("openssl"), "verify", "-x509_strict", "-CAfile", state / "root.pem",
            "-untrusted", state / "svid" / "chain.pem", state / "svid" / "cert.pem",
        ],
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert verified.returncode == 0, verified.stderr
    _assert_secrets_are_their_owners_alone(state)
    issuer, leaf = _issuer_serial(state), (state / "svid" / "cert.pem").read_text()

    second = _once(tmp_path)

    assert SPIFFE_ID in second
    assert _issuer_serial(state) == issuer
    assert (state / "svid" / "cert.pem").read_text() != leaf


def _assert_secrets_are_their_owners_alone(state: Path) -> None:
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    open_to_others = {
        str(path.relative_to(state))
        for path in state.rglob("*")
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077
    }
    secret = {"pin", "so-pin", "root-key.pem", "token-issuer-key.pem", "svid/key.pem"}
    secret |= {f"tokens/{account.file_name}" for account in (WORKLOAD, ADMIN)}
    assert all((state / name).exists() for name in secret)
    assert not secret & open_to_others
    assert not any(name.startswith("softhsm/tokens/") for name in open_to_others)


def test_the_lines_that_it_prints_work_in_another_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, elsewhere = tmp_path / "a directory", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    with running_development(home) as development:
        state = StateDirectory(development.state)
        steps = next_steps(
            state,
            f"localhost:{development.port}",
            workload_token=state.tokens / WORKLOAD.file_name,
            admin_token=state.tokens / ADMIN.file_name,
        )
        printed = development.text()
        outputs = []
        for step in steps:
            assert step.command in printed, step.title
            done = run_lines(step.command, elsewhere)
            assert done.returncode == 0, f"{step.command}\n{done.stdout}{done.stderr}"
            outputs.append(done.stdout)

        services, issued, token, chain, records, python, openssl, revoked = outputs
        assert "meshmint.v1.CertificateService" in services.splitlines()
        assert json.loads(issued)["spiffe_id"] == SPIFFE_ID
        assert json.loads(token)["spiffe_id"] == SPIFFE_ID
        assert json.loads(chain)["trust_domain"] == "example.org"
        assert json.loads(records)["records"][0]["spiffe_id"] == SPIFFE_ID
        assert python.startswith(SPIFFE_ID)
        assert ": OK" in openssl
        assert "cert.pem: good" in revoked
        assert "cert.pem: OK" in revoked
        account = f"system:serviceaccount:{WORKLOAD.namespace}:{WORKLOAD.name}"
        development.wait_for(f"granted CertificateService/Issue  {account}")
        _assert_health_and_metrics(development.port + 1)
        _assert_roles_are_applied_through_the_service(state, development.port, capsys)
        assert development.interrupt() == 0
    _assert_nobody_listens(development.port)


def _assert_roles_are_applied_through_the_service(
    state: StateDirectory, port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    roles = state.path / "more.yaml"
    arguments = ["apply", "--server", f"localhost:{port}", "--ca-file", state.root_certificate]
    arguments += ["-f", roles, "--json", "--token-file"]
    admin, workload = (state.tokens / account.file_name for account in (ADMIN, WORKLOAD))
    changes = []
    for ttl in ("1h", "2h", "2h"):
        roles.write_text(f"name: more\ncallers: [{{namespace: shop}}]\nspiffe: own\nttl: {ttl}\n")
        with pytest.raises(SystemExit) as ended:
            main([str(part) for part in (*arguments, admin)])
        assert ended.value.code == 0, capsys.readouterr().err
        changes.append(json.loads(capsys.readouterr().out))
    assert [change["change"] for change in changes] == ["created", "updated", "unchanged"]
    assert changes[1]["diff"] == ["- ttl: 1h", "+ ttl: 2h"]

    with pytest.raises(SystemExit) as refused:
        main([str(part) for part in (*arguments, workload)])
    assert refused.value.code == 1
    assert "not an administrator" in capsys.readouterr().err


def _assert_health_and_metrics(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310
        assert answer.status == 200
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310
        assert b"meshmint_rpc_seconds" in answer.read()


def test_one_directory_takes_one_service_which_ends_with_its_parent(tmp_path: Path) -> None:
    with running_development(tmp_path) as development:
        second = meshmintd("dev", "--once", "--port", free_pair(), cwd=tmp_path)
        assert second.returncode == 1
        assert "in use by another" in second.stderr
        assert str(development.process.pid) in second.stderr

        os.kill(development.process.pid, signal.SIGKILL)
        development.process.wait()
    give_up_at = time.monotonic() + 30
    while time.monotonic() < give_up_at:
        try:
            _assert_nobody_listens(development.port)
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail("the service still listens")


def _assert_nobody_listens(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_without_softhsm_the_key_is_an_encrypted_file_and_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = _once(tmp_path, MESHMINT_SOFTHSM_MODULE=str(tmp_path / "absent.so"))

    assert "SoftHSM is not installed, so the signing key is an encrypted file" in output
    assert "in an encrypted file" in output
    assert SPIFFE_ID in output
    state = tmp_path / ".meshmint"
    issuers, jwt_svids = sorted((state / "keys").iterdir())
    for key in (issuers, jwt_svids):
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in key.read_bytes()
        assert stat.S_IMODE(key.stat().st_mode) == 0o600

    # Now that SoftHSM is there again, the directory keeps the key that it has.
    assert "--state" in _refused(capsys, "--keys", "softhsm", "--state", state)


def test_softhsm_that_is_asked_for_and_missing_is_an_error_that_names_the_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHMINT_SOFTHSM_MODULE", str(tmp_path / "absent.so"))

    assert "softhsm2" in _refused(capsys, "--keys", "softhsm", "--state", tmp_path)


def test_a_directory_with_other_things_in_it_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "letter.txt").touch()

    assert "holds other things" in _refused(capsys, "--state", tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_port_in_use_is_a_plain_message_that_names_the_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        message = _refused(capsys, "--state", tmp_path, "--port", port)

    assert f"port {port}" in message
    assert "--port" in message


def _refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What `meshmintd dev` says on standard error as it ends with status 1."""
    given = list(map(str, arguments))
    if "--port" not in given:
        given += ["--port", str(free_pair())]
    with pytest.raises(SystemExit) as ended:
        main(["dev", "--once", *given])
    assert ended.value.code == 1
    return capsys.readouterr().err
