"""The README's lines, pasted as they stand beside a development service."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.development import free_pair, run_lines, running_development

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPIFFE_ID = "spiffe://example.org/ns/shop/sa/cart"
PORT = 8443

pytestmark = pytest.mark.timeout(240)


@contextlib.contextmanager
def _port() -> Iterator[int]:
    """The README's port, for one test run of this machine at a time; another if it is taken."""
    with open(Path(tempfile.gettempdir()) / "meshmint-readme-test.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield PORT if _is_free(PORT) and _is_free(PORT + 1) else free_pair()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _blocks() -> list[str]:
    """The shell blocks under "Go on in another terminal"."""
    section = README.partition("## Go on in another terminal")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def test_the_lines_of_the_readme_work_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / ".venv").symlink_to(sys.prefix)
    with _port() as port, running_development(tmp_path, port=port):
        outputs = []
        for block in _blocks():
            lines = block if port == PORT else block.replace(str(PORT), str(port))
            done = run_lines(lines, tmp_path)
            assert done.returncode == 0, f"{lines}\n{done.stdout}{done.stderr}"
            outputs.append(done.stdout)

    grpcurl, python, revoked, role, agent = outputs
    assert "meshmint.v1.CertificateService" in grpcurl.splitlines()
    assert f'"spiffe_id": "{SPIFFE_ID}"' in grpcurl
    assert '"token": "eyJ' in grpcurl
    assert '"trust_domain": "example.org"' in grpcurl
    assert f"{SPIFFE_ID} until" in python
    assert ": OK" in python
    said = [line.split(": ")[1] for line in revoked.splitlines() if "cert.pem: " in line]
    assert said == ["good", "revoked"]
    assert "+ role web: created" in role
    assert json.loads(role[role.index("{") :])["role"] == "web"
    assert f"localhost:{port} answers" in agent
    assert "key.pem -> ..data/key.pem" in agent


def test_the_first_screen_has_the_two_commands_and_they_exist() -> None:
    first = README.partition("## ")[0]
    (commands,) = re.findall(r"^```sh\n(.*?)^```$", first, re.MULTILINE | re.DOTALL)
    targets = [line.split("#")[0].split() for line in commands.splitlines()]
    assert targets == [["make", "run"], ["make", "test"]]
    for target in ("run", "demo", "test", "lint", "types", "proto", "proto-check"):
        known = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert known.returncode == 0, known.stderr


def test_the_output_in_the_readme_is_what_is_printed_now() -> None:
    from meshmint_server.cli.dev import command

    shown = re.search(r"^```text\n(Meshmint, a development.*?)^```$", README, re.M | re.S)
    assert shown is not None
    source = Path(command.__file__).read_text(encoding="utf-8")
    for label in re.findall(r"^  ([A-Z][A-Za-z ]*?)  ", shown[1], re.MULTILINE):
        assert f'"{label}"' in source, f"the README shows {label!r}, and the command does not"
    assert SPIFFE_ID in shown[1]
