"""The command `meshmint`: what it prints where, and with which exit status."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import grpc
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from meshmint import generate_key, make_csr
from meshmint.cli import main
from meshmint.v1 import certificate_service_pb2 as pb
from support.fake_service import (
    OWN_SPIFFE_ID,
    Authority,
    FakeService,
    fake_service,
    pem,
    refuse,
)

TOKEN = "head.body.signature"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    """A server with TLS, and the environment that leads to it."""
    for name in [name for name in os.environ if name.startswith("MESHMINT_")]:
        monkeypatch.delenv(name)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    with fake_service(tmp_path, tls=True) as running:
        monkeypatch.setenv("MESHMINT_SERVER", running.target)
        monkeypatch.setenv("MESHMINT_CA_FILE", str(running.root_file))
        monkeypatch.setenv("MESHMINT_TOKEN_FILE", str(token))
        yield running


def usage_status(arguments: Sequence[str]) -> int:
    """The status of a command line that argparse refuses."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_issue_prints_certificate_chain_and_a_key_that_never_travelled(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["issue"]) == 0
    out, err = capsys.readouterr()
    leaf, issuer = x509.load_pem_x509_certificates(out.encode())
    key = load_pem_private_key(out[out.index("-----BEGIN PRIVATE KEY") :].encode(), None)
    assert key.public_key() == leaf.public_key()
    assert issuer == service.authority.certificate
    assert err == ""
    assert [call.method for call in service.calls] == ["Sign"]
    assert service.calls[0].authorization == f"Bearer {TOKEN}"


def test_issue_writes_the_set_and_shows_a_table_without_the_key(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out_directory = tmp_path / "svid"
    assert main(["issue", "--role", "web", "--ttl", "1h", "--out", str(out_directory)]) == 0
    out, _ = capsys.readouterr()
    assert OWN_SPIFFE_ID in out
    assert "Time left" in out
    assert "verified" in out
    assert "PRIVATE KEY" not in out
    assert "\x1b" not in out
    assert stat.S_IMODE((out_directory / "key.pem").stat().st_mode) == 0o600
    request = service.calls[0].request
    assert (request.role, request.validity.ttl.seconds) == ("web", 3600)


def test_json_holds_everything_and_the_key_only_if_no_file_does(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["issue", "--dns", "a.example", "--dns", "b.example", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    leaf = x509.load_pem_x509_certificate(document["certificate"].encode())
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a.example", "b.example"]
    assert document["spiffe_id"] == OWN_SPIFFE_ID
    assert document["not_after"].endswith("Z")
    assert document["private_key"].startswith("-----BEGIN PRIVATE KEY")
    assert main(["issue", "--json", "--out", str(tmp_path / "svid")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "private_key" not in document
    assert str(tmp_path / "svid" / "key.pem") in document["files"]


def test_the_server_makes_the_key_only_when_told(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["issue", "--server-key", "--dns", "a.example", "--key-algorithm", "ec-p384"]) == 0
    assert "PRIVATE KEY" in capsys.readouterr().out
    (call,) = service.calls
    assert call.method == "Issue"
    assert call.request.key_algorithm == pb.KEY_ALGORITHM_EC_P384


def test_jwt_svid_prints_the_token_and_nothing_else(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["jwt-svid", "--audience", "https://a.example", "--audience", "b", "--ttl", "2m"]
    assert main([*command, "--role", "api"]) == 0
    out, err = capsys.readouterr()
    claims = jwt.decode(out.strip(), options={"verify_signature": False})
    assert claims["aud"] == ["https://a.example", "b"]
    assert (out.count("\n"), err) == (1, "")
    (call,) = service.calls
    assert (call.request.role, call.request.ttl.seconds) == ("api", 120)
    assert call.authorization == f"Bearer {TOKEN}"


def test_jwt_svid_writes_a_file_for_its_owner_alone_and_shows_no_token(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "token"
    assert main(["jwt-svid", "--audience", "a", "--out", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert jwt.decode(path.read_text(), options={"verify_signature": False})["aud"] == ["a"]
    assert document["file"] == str(path)
    assert "token" not in document
    assert document["expires_at"].endswith("Z")
    assert main(["jwt-svid", "--audience", "a", "--out", str(path)]) == 0
    assert capsys.readouterr().out == ""


def test_jwt_svid_asks_for_nothing_where_the_token_could_not_be_written(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["jwt-svid", "--audience", "a", "--out", str(tmp_path)]) != 0
    assert "directory" in capsys.readouterr().err
    assert usage_status(["jwt-svid"]) == 2
    assert service.calls == []


def test_sign_takes_a_file_and_prints_no_key(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "csr.der"
    path.write_bytes(make_csr(generate_key()).public_bytes(Encoding.DER))
    assert main(["sign", str(path), "--role", "web"]) == 0
    out, _ = capsys.readouterr()
    assert len(x509.load_pem_x509_certificates(out.encode())) == 2
    assert "PRIVATE" not in out


def test_chain_needs_no_token(
    service: FakeService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MESHMINT_TOKEN_FILE", str(tmp_path / "missing"))
    assert main(["chain", "--only", "bundle"]) == 0
    (root,) = x509.load_pem_x509_certificates(capsys.readouterr().out.encode())
    assert root == service.authority.root
    assert main(["chain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trust_domain"] == "example.org"
    assert main(["chain", "--out", str(tmp_path / "mesh")]) == 0
    assert {path.name for path in (tmp_path / "mesh").iterdir()} == {"chain.pem", "bundle.pem"}


@pytest.mark.usefixtures("service")
def test_inspect_shows_and_verifies_what_issue_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "svid"
    assert main(["issue", "--out", str(folder)]) == 0
    capsys.readouterr()
    bundle = ["--bundle", str(folder / "bundle.pem")]
    assert main(["inspect", str(folder / "fullchain.pem"), *bundle]) == 0
    out, _ = capsys.readouterr()
    assert OWN_SPIFFE_ID in out
    assert "EC P-256" in out
    assert "verified, with 1 in between" in out
    chain = ["--chain", str(folder / "chain.pem")]
    assert main(["inspect", str(folder / "cert.pem"), *bundle, *chain, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["is_verified"] is True


def test_inspect_says_why_a_chain_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = Authority.create(), Authority.create()
    leaf = ours.mint(
        generate_key().public_key(),
        [x509.DNSName("a.example"), x509.UniformResourceIdentifier(OWN_SPIFFE_ID)],
        lifetime=timedelta(minutes=-10),
    )
    leaf_file, good, bad = (tmp_path / name for name in ("leaf.pem", "good.pem", "bad.pem"))
    leaf_file.write_text(pem(leaf) + pem(ours.certificate))
    good.write_text(pem(ours.root))
    bad.write_text(pem(theirs.root))
    assert main(["inspect", str(leaf_file), "--bundle", str(bad)]) == 5
    assert "NOT verified" in capsys.readouterr().out
    assert main(["inspect", str(leaf_file), "--bundle", str(good)]) == 5
    out = capsys.readouterr().out
    assert "and not now" in out
    assert "expired 10m" in out


def test_inspect_never_sends_control_characters_of_a_certificate_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = x509.UniformResourceIdentifier("http://a/\x1b[2J\x07")
    path = tmp_path / "evil.pem"
    path.write_text(pem(Authority.create().mint(generate_key().public_key(), [name])))
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[2J\x07" in out


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, 3),
        (grpc.StatusCode.PERMISSION_DENIED, 3),
        (grpc.StatusCode.INVALID_ARGUMENT, 3),
        (grpc.StatusCode.FAILED_PRECONDITION, 3),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 4),
        (grpc.StatusCode.INTERNAL, 1),
    ],
)
def test_a_failed_call_is_one_line_with_its_violations_below_and_a_status(
    service: FakeService,
    capsys: pytest.CaptureFixture[str],
    code: grpc.StatusCode,
    status: int,
) -> None:
    violations = [("names.uris[0]", "not yours"), ("validity.ttl", "too long")]
    service.answers.append(refuse(code, "ask for less", reason="A_REASON", violations=violations))
    assert main(["issue"]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[:3] == [
        "error: ask for less [A_REASON]",
        "  - names.uris[0]: not yours",
        "  - validity.ttl: too long",
    ]
    assert TOKEN not in err


def test_unavailable_has_its_own_status_and_says_when_to_try_again(
    service: FakeService, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers.append(
        refuse(grpc.StatusCode.UNAVAILABLE, "the HSM is away", reason="X", retry_after=90)
    )
    assert main(["issue"]) == 4
    assert "hint: try again in 90 s" in capsys.readouterr().err


def test_a_wrong_answer_has_its_own_status(
    service: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.answers.append(lambda request, context: pb.SignResponse(certificate="x"))
    assert main(["issue", "--out", str(tmp_path / "svid")]) == 5
    assert "cannot be parsed" in capsys.readouterr().err
    assert list((tmp_path / "svid").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "COMMAND"),
        (["issue", "--ttl", "soon"], "not a duration"),
        (["issue", "--not-after", "2030-01-01"], "with a zone"),
        (["issue", "--ttl", "1h", "--not-after", "2030-01-01T00:00:00Z"], "not allowed"),
        (["issue", "--timeout", "0"], "more than nothing"),
        (["issue", "--token", TOKEN], "unrecognized"),
        (["issue", "--key-algorithm", "dsa"], "invalid choice"),
        (["chain", "--only", "chain", "--json"], "--only"),
    ],
)
@pytest.mark.usefixtures("service")
def test_wrong_usage_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str
) -> None:
    assert usage_status(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert complaint in err.splitlines()[0]


def test_without_a_server_the_command_says_how_to_name_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MESHMINT_SERVER", raising=False)
    assert usage_status(["chain"]) == 2
    assert "MESHMINT_SERVER" in capsys.readouterr().err


@pytest.mark.usefixtures("service")
def test_files_that_cannot_be_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    csr = tmp_path / "request.csr"
    csr.write_bytes(make_csr(generate_key()).public_bytes(Encoding.PEM))
    for arguments, complaint in (
        (["sign", str(tmp_path / "missing.csr")], "missing.csr: No such file"),
        (["inspect", str(csr)], "it is a CSR"),
        (["inspect", str(tmp_path)], "Is a directory"),
        (["issue", "--token-file", str(tmp_path / "no-token")], "no-token: No such file"),
        (["issue", "--ca-file", str(tmp_path / "no-ca")], "no-ca: No such file"),
        (["issue", "--insecure", "--ca-file", "", "--server", "10.0.0.1:1"], "in the clear"),
    ):
        assert main(arguments) == 2
        assert complaint in capsys.readouterr().err
    assert main(["issue", "--out", str(csr)]) == 1
    assert f"cannot read or write {csr}" in capsys.readouterr().err


def test_the_token_may_come_from_the_environment(
    service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESHMINT_TOKEN_FILE")
    monkeypatch.setenv("MESHMINT_TOKEN", "from-env")
    assert main(["issue"]) == 0
    assert service.calls[0].authorization == "Bearer from-env"


def test_a_refused_handshake_leaves_no_lines_of_grpc_on_stderr(
    service: FakeService, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    other.write_text(pem(Authority.create().root))
    done = run_command("chain", "--ca-file", str(other))
    assert done.returncode == 4
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]
    assert "not trusted" in done.stderr


def test_a_reader_that_leaves_early_is_no_error_with_a_traceback(service: FakeService) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = run_command("chain", stdout=writing)
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(("no_color", "is_coloured"), [("", True), ("1", False)])
def test_colours_are_for_terminals_that_want_them(
    service: FakeService, tmp_path: Path, no_color: str, is_coloured: bool
) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    try:
        done = run_command(
            "issue", "--out", str(tmp_path / "svid"), stdout=follower, environment=environment
        )
        os.close(follower)
        shown = os.read(leader, 65536).decode()
    finally:
        os.close(leader)
    assert done.returncode == 0, done.stderr
    assert OWN_SPIFFE_ID in shown
    assert ("\x1b[" in shown) is is_coloured


def run_command(
    *arguments: str, stdout: int = subprocess.PIPE, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "meshmint", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        timeout=60,
        check=False,
    )
