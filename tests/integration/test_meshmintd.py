"""The operators' commands: what they do, what they say, and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from meshmint_server.cli import main
from meshmint_server.cli.dev.root import DevelopmentRoot
from meshmint_server.cli.dev.state import StateDirectory

ROLE = """\
name: web
callers:
  - namespace: shop
allowed_domains: [example.com]
allow_subdomains: true
key_type: ec
ttl: {ttl}
"""


class Operator:
    """Runs commands against one configuration with a key in a file and its own store."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.config = directory / "config.yaml"
        self._capsys = capsys
        (directory / "keys").mkdir(mode=0o700)
        (directory / "passphrase").touch(0o600)
        (directory / "passphrase").write_text("correct horse battery staple")
        self.config.write_text(
            yaml.safe_dump(
                {
                    "trust_domain": "example.org",
                    "store": f"sqlite:///{directory}/meshmint.db",
                    "keys": {
                        "file_directory": f"{directory}/keys",
                        "passphrase_source": f"file:{directory}/passphrase",
                    },
                }
            )
        )

    def run(self, *arguments: object, status: int = 0) -> tuple[str, str]:
        """Runs a command that ends with that status; returns its output and its errors."""
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = self._capsys.readouterr()
        assert ended.value.code == status, printed.out + printed.err
        assert "Traceback" not in printed.err
        return printed.out, printed.err

    def write(self, name: str, text: str) -> Path:
        """A file beside the configuration."""
        path = self.directory / name
        path.write_text(text, encoding="utf-8")
        return path


@pytest.fixture
def operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(tmp_path, capsys)


def test_csr_import_and_show_make_an_issuer(operator: Operator) -> None:
    root = DevelopmentRoot(StateDirectory.make(operator.directory / "root"))
    csr, told = operator.run("ca", "csr", "-c", operator.config, "--name", "issuer-1")
    again, _ = operator.run("ca", "csr", "-c", operator.config, "--name", "issuer-1")
    assert "meshmintd ca import" in told
    assert _public_key(csr) == _public_key(again)
    pending, _ = operator.run("ca", "show", "-c", operator.config)
    assert "issuer-1 (pending)" in pending

    signed = operator.directory / "signed.pem"
    signed.write_bytes(root.certificate_pem + root.sign(csr))
    operator.run("ca", "import", "-c", operator.config, signed)

    shown, _ = operator.run("ca", "show", "-c", operator.config, "issuer-1", "--json")
    issuer = json.loads(shown)
    assert (issuer["name"], issuer["state"]) == ("issuer-1", "active")
    assert issuer["roots"] == [root.certificate.subject.rfc4514_string()]
    assert "in an encrypted file" in issuer["key"]


def _public_key(csr: str) -> object:
    return x509.load_pem_x509_csr(csr.encode()).public_key()


def test_a_certificate_that_does_not_fit_is_refused_with_the_reason(operator: Operator) -> None:
    root = DevelopmentRoot(StateDirectory.make(operator.directory / "root"))
    operator.run("ca", "csr", "-c", operator.config, "--name", "issuer-1")
    alone = operator.directory / "alone.pem"
    alone.write_bytes(root.certificate_pem)

    _, said = operator.run("ca", "import", "-c", operator.config, alone, status=1)

    assert "was not imported" in said
    assert "another CSR" in said


def test_a_csr_that_cannot_be_written_can_be_had_again(operator: Operator) -> None:
    command = ("ca", "csr", "-c", operator.config, "--name", "issuer-1")

    _, said = operator.run(*command, "--out", operator.directory / "none" / "csr.pem", status=1)

    assert "run it again" in said
    operator.run(*command, "--out", operator.directory / "csr.pem")
    assert "BEGIN CERTIFICATE REQUEST" in (operator.directory / "csr.pem").read_text()


def test_an_unknown_issuer_and_no_issuer_are_said(operator: Operator) -> None:
    assert "ca csr" in operator.run("ca", "show", "-c", operator.config)[0]
    assert "no issuer 'x'" in operator.run("ca", "show", "-c", operator.config, "x", status=1)[1]


def test_apply_creates_then_changes_then_leaves_alone(operator: Operator) -> None:
    roles = operator.write("roles.yaml", ROLE.format(ttl="1h"))
    apply = ("apply", "-c", operator.config, "-f", roles)

    dry, _ = operator.run(*apply, "--dry-run")
    created, _ = operator.run(*apply)
    unchanged, _ = operator.run(*apply)
    operator.write("roles.yaml", ROLE.format(ttl="2h"))
    updated, _ = operator.run(*apply)

    assert "dry run: nothing was changed" in dry
    assert "+ role web: created" in dry
    assert "+ role web: created" in created
    assert "0 created, 0 updated, 1 unchanged" in unchanged
    assert "~ role web: updated\n    - ttl: 1h\n    + ttl: 2h\n" in updated


def test_apply_says_which_roles_nobody_can_use(operator: Operator) -> None:
    roles = operator.write("roles.yaml", "name: web\nallow_any_name: true\n")

    _, said = operator.run("apply", "-c", operator.config, "-f", roles)

    assert "Warning: role web:" in said


def test_one_bad_role_applies_none(operator: Operator) -> None:
    bad = ROLE.format(ttl="1h") + "---\nname: other\nkey_bitz: 256\n"
    roles = operator.write("roles.yaml", bad)

    _, said = operator.run("apply", "-c", operator.config, "-f", roles, status=1)

    assert f"{roles}:10: key_bitz" in said
    good = operator.write("good.yaml", ROLE.format(ttl="1h"))
    assert "web: created" in operator.run("apply", "-c", operator.config, "-f", good)[0]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ((), "-c FILE"),
        (("--server", "localhost:1"), "--token-file"),
        (("-c", "x", "--server", "localhost:1"), "either"),
        (("-c", "x", "--token-file", "t"), "--server"),
    ],
)
def test_apply_says_what_its_command_line_lacks(
    operator: Operator, arguments: tuple[str, ...], hint: str
) -> None:
    roles = operator.write("roles.yaml", ROLE.format(ttl="1h"))

    assert hint in operator.run("apply", "-f", roles, *arguments, status=1)[1]


def test_a_service_that_is_not_there_is_a_plain_message(operator: Operator) -> None:
    roles = operator.write("roles.yaml", ROLE.format(ttl="1h"))
    token = operator.write("token", "eyJ.e30.sig")
    root = DevelopmentRoot(StateDirectory.make(operator.directory / "root"))
    ca_file = operator.write("root.pem", root.certificate_pem.decode())

    _, said = operator.run(
        "apply", "-f", roles, "--server", "localhost:1", "--token-file", token,
        "--ca-file", ca_file, status=1,
    )  # fmt: skip

    assert "localhost:1" in said


def test_config_check_says_what_is_wrong_and_where(operator: Operator) -> None:
    assert "example.org" in operator.run("config", "check", "-c", operator.config)[0]

    operator.config.write_text(operator.config.read_text() + "workrs: 2\nlisten: nowhere\n")
    _, said = operator.run("config", "check", "-c", operator.config, status=78)

    assert "workrs" in said
    assert "listen" in said


@pytest.mark.parametrize("command", [("serve",), ("ca", "show"), ("config", "check")])
def test_a_configuration_that_is_not_there_ends_every_command_alike(
    operator: Operator, command: tuple[str, ...]
) -> None:
    missing = operator.directory / "missing.yaml"

    _, said = operator.run(*command, "-c", missing, status=78)

    assert str(missing) in said


def test_the_version_is_shown(operator: Operator) -> None:
    assert operator.run("--version")[0].startswith("meshmintd 0.")


def test_a_wrong_command_line_ends_with_status_2(operator: Operator) -> None:
    operator.run("ca", "csr", "--name", "x", status=2)
