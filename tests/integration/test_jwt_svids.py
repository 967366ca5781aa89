"""JWT-SVIDs of a real service: what is in them, who verifies them, and who gets none."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from meshmint import AsyncClient, Client, JwtSvid, PermissionDenied
from meshmint.cli import main
from meshmint.v1 import certificate_service_pb2 as pb
from support import jwt_verifier
from support.programs import program
from support.service import Service

AUDIENCE = "https://api.example.org"
SVID = "spiffe://mesh.example/ns/shop/sa/cart"
PATH = "/mesh/.well-known/"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two workers that issue JWT-SVIDs, and whose tokens name an issuer with a path."""
    service = Service(tmp_path_factory.mktemp("jwt"))
    service.change_config(
        jwt_svid={"enabled": True, "issuer": service.http_url + "/mesh"},
        authenticators=[
            *service.config["authenticators"],
            {
                "kind": "jwt",
                "name": "people",
                "issuer": "https://people.example",
                "audiences": [service.tokens.audience],
                "jwks_file": str(service.tokens.jwks_file),
            },
        ],
    )
    service.start()
    try:
        until(lambda: states(service) == ["active"])
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="module")
def role(running: Service) -> str:
    name = running.put_role(
        {
            "spiffe": "own",
            "key_type": "ec",
            "jwt_svid": {"audiences": [AUDIENCE, "spiffe://mesh.example/*"], "max_ttl": "300s"},
        }
    )
    running.wait_until_everywhere(name)
    return name


def until(holds: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)


def states(service: Service) -> list[str]:
    done = service.meshmintd("jwt-keys", "show", "-c", service.config_path, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line)["state"] for line in done.stdout.splitlines()]


def get(service: Service, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        service.http_url + path, method=method, headers=headers
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def ask(
    service: Service,
    role: str = "",
    audiences: Sequence[str] = (AUDIENCE,),
    *,
    ttl: timedelta | Duration | None = None,
    token: str | None = None,
) -> pb.IssueJwtSvidResponse:
    request = pb.IssueJwtSvidRequest(role=role, audiences=audiences)
    if isinstance(ttl, Duration):
        request.ttl.CopyFrom(ttl)
    elif ttl is not None:
        request.ttl.FromTimedelta(ttl)
    credential = service.token() if token is None else token
    return service.stub.IssueJwtSvid(request, timeout=30, metadata=service.metadata(credential))


class Refusal:
    """What a client sees of an error."""

    def __init__(self, call: Callable[[], object]) -> None:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        self.code = caught.value.code()
        self.message = caught.value.details() or ""
        metadata = dict(caught.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
        self.reason = info.reason
        self.fields = [violation.field for violation in bad.field_violations]


# --- what is in a token, and who verifies it -------------------------------------------


def test_a_verifier_that_knows_openid_connect_alone_finds_the_keys_and_believes_the_token(
    running: Service, role: str
) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    answer = ask(running, role, [AUDIENCE, "spiffe://mesh.example/ns/shop/sa/db"])
    issuer = running.http_url + "/mesh"
    discovery = json.loads(get(running, PATH + "openid-configuration")[1])
    assert discovery["issuer"] == issuer
    keys = jwt.PyJWKClient(discovery["jwks_uri"])
    claims = jwt.decode(
        answer.token,
        keys.get_signing_key_from_jwt(answer.token),
        algorithms=discovery["id_token_signing_alg_values_supported"],
        audience=AUDIENCE,
        issuer=issuer,
        options={"require": ["sub", "aud", "exp", "iat", "jti", "iss"]},
    )
    assert claims.keys() == {"sub", "aud", "exp", "iat", "jti", "iss"}
    assert claims["sub"] == answer.spiffe_id == SVID
    assert claims["aud"] == [AUDIENCE, "spiffe://mesh.example/ns/shop/sa/db"]
    assert claims["jti"] == answer.jwt_id
    assert claims["exp"] == answer.expires_at.seconds == answer.issued_at.seconds + 300
    assert before.timestamp() <= answer.issued_at.seconds == claims["iat"] + 30
    assert answer.role == role
    assert list(answer.warnings) == []
    header = jwt.get_unverified_header(answer.token)
    assert header == {"alg": "ES256", "typ": "JWT", "kid": header["kid"]}
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(
            answer.token,
            keys.get_signing_key(header["kid"]),
            algorithms=["ES256"],
            audience="https://other.example.org",
        )


def test_an_independent_verifier_believes_it_with_the_keys_of_every_trust_bundle(
    running: Service, role: str, tmp_path: Path
) -> None:
    token = ask(running, role).token
    chain = running.stub.GetChain(pb.GetChainRequest(), timeout=10)
    watched = next(running.stub.WatchTrustBundle(pb.WatchTrustBundleRequest(), timeout=10))
    document = json.loads(get(running, "/bundle.json")[1])
    bundle = {"keys": [key for key in document["keys"] if key["use"] == "jwt-svid"]}
    assert json.loads(chain.jwt_keys) == json.loads(watched.jwt_keys) == bundle
    assert document["spiffe_sequence"] == watched.sequence
    for key in bundle["keys"]:
        assert key.keys() == {"use", "kid", "kty", "crv", "x", "y"}
    claims = jwt_verifier.verify(token, bundle, AUDIENCE, time.time(), tmp_path)
    assert claims["sub"] == SVID
    head, body, signature = token.split(".")
    other = ask(running, role).token.split(".")
    for wrong in (f"{head}.{other[1]}.{signature}", f"{head}.{body}.{other[2]}"):
        with pytest.raises(jwt_verifier.Refused):
            jwt_verifier.verify(wrong, bundle, AUDIENCE, time.time(), tmp_path)


def test_the_signing_key_is_in_the_token_and_cannot_leave_it(running: Service) -> None:
    (key,) = json.loads(get(running, PATH + "jwks.json")[1])["keys"]
    listed = subprocess.run(
        [program("pkcs11-tool"), "--module", running.module, "--login",
         "--token-label", "meshmint", "--pin", "env:MESHMINT_TEST_PIN", "--list-objects",
         "--type", "privkey"],
        env=running.token_environment, capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip
    (found,) = [one for one in listed.split("Private Key Object") if key["kid"] in one]
    access = next(line for line in found.splitlines() if "Access:" in line)
    assert {"sensitive", "never extractable", "local"} <= {
        word.strip() for word in access.partition(":")[2].split(",")
    }
    usage = next(line for line in found.splitlines() if "Usage:" in line)
    assert usage.partition(":")[2].strip() == "sign"


@pytest.mark.parametrize("name", ["openid-configuration", "jwks.json"])
def test_the_documents_may_be_kept_and_asked_for_again(running: Service, name: str) -> None:
    status, content, headers = get(running, PATH + name)
    assert status == 200
    assert headers["Cache-Control"] == "public, max-age=300"
    assert headers["Content-Type"].startswith("application/")
    tag = headers["ETag"]
    known = get(running, PATH + name, **{"If-None-Match": tag})
    assert (known[0], known[1]) == (304, b"")
    head = get(running, PATH + name, "HEAD")
    assert (head[0], head[1], head[2]["ETag"]) == (200, b"", tag)
    # Every worker says the same.
    assert {get(running, PATH + name)[1] for _ in range(8)} == {content}
    assert get(running, "/.well-known/" + name)[0] == 404
    assert get(running, PATH + name, "POST")[0] == 405


def test_the_key_set_for_openid_connect_has_the_use_that_its_verifiers_look_for(
    running: Service,
) -> None:
    (key,) = json.loads(get(running, PATH + "jwks.json")[1])["keys"]
    assert (key["use"], key["alg"], key["kty"], key["crv"]) == ("sig", "ES256", "EC", "P-256")


# --- who gets which --------------------------------------------------------------------


def test_a_role_is_found_among_those_that_grant_jwt_svids(running: Service, role: str) -> None:
    other = running.put_role({"spiffe": "own", "key_type": "ec"})
    running.wait_until_everywhere(other)
    assert ask(running).role == role
    refusal = Refusal(lambda: ask(running, other))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.PERMISSION_DENIED, ["role"])
    assert "jwt_svid" in refusal.message
    nobody = Refusal(lambda: ask(running, token=running.token("elsewhere", "cart")))
    assert (nobody.code, nobody.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_DENIED")


def test_a_lifetime_over_the_roles_is_shortened_with_a_word_or_refused(
    running: Service, role: str
) -> None:
    answer = ask(running, role, ttl=timedelta(hours=1))
    assert answer.expires_at.seconds - answer.issued_at.seconds == 300
    assert "5m" in answer.warnings[0]
    answer = ask(running, role, ttl=timedelta(seconds=1))
    assert answer.expires_at.seconds - answer.issued_at.seconds == 1
    strict = running.put_role(
        {
            "callers": [{"service_account": "strict"}],
            "ttl_over_max": "refuse",
            "require_cn": False,
            "jwt_svid": {"audiences": [AUDIENCE], "ttl": "60s", "max_ttl": "120s"},
        }
    )
    # The worker that took the role knows it, and this connection is to that one.
    token = running.token("shop-2", "strict")
    answer = ask(running, strict, token=token)
    assert answer.expires_at.seconds - answer.issued_at.seconds == 60
    refusal = Refusal(lambda: ask(running, strict, ttl=timedelta(seconds=121), token=token))
    assert (refusal.code, refusal.fields) == (grpc.StatusCode.PERMISSION_DENIED, ["ttl"])


INVALID, DENIED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("audiences", "ttl", "code", "fields"),
    [
        ([], None, INVALID, ["audiences"]),
        ([""], None, INVALID, ["audiences[0]"]),
        ([AUDIENCE] * 1000, None, INVALID, ["audiences"]),
        ([f"{AUDIENCE}/{n}" for n in range(17)], None, INVALID, ["audiences"]),
        ([AUDIENCE, "a\nb"], None, INVALID, ["audiences[1]"]),
        ([AUDIENCE + "\n"], None, INVALID, ["audiences[0]"]),
        (["\x00"], None, INVALID, ["audiences[0]"]),
        (["https://аpi.example.org"], None, INVALID, ["audiences[0]"]),
        (["*"], None, INVALID, ["audiences[0]"]),
        (["spiffe://mesh.example/*"], None, INVALID, ["audiences[0]"]),
        (["spiffe://mesh.example/" + "x" * 500], None, INVALID, ["audiences[0]"]),
        (["https://api.example.org.evil.example"], None, DENIED, ["audiences[0]"]),
        (["https://api.example.orG"], None, DENIED, ["audiences[0]"]),
        ([AUDIENCE, "https://other.example", "c"], None, DENIED, ["audiences[1]", "audiences[2]"]),
        ([AUDIENCE], Duration(), INVALID, ["ttl"]),
        ([AUDIENCE], Duration(seconds=-5), INVALID, ["ttl"]),
        ([AUDIENCE], Duration(nanos=5), INVALID, ["ttl"]),
        ([AUDIENCE], Duration(seconds=1, nanos=500_000_000), INVALID, ["ttl"]),
        ([AUDIENCE], Duration(seconds=315_576_000_000), INVALID, ["ttl"]),
        ([AUDIENCE], Duration(seconds=2**62), INVALID, ["ttl"]),
        (["", "x"], Duration(), INVALID, ["audiences[0]", "ttl"]),
    ],
)
def test_what_is_malformed_or_not_allowed_gets_no_token(  # noqa: PLR0917 - a table
    running: Service,
    role: str,
    audiences: list[str],
    ttl: Duration | None,
    code: grpc.StatusCode,
    fields: list[str],
) -> None:
    running.new_log_lines()
    refusal = Refusal(lambda: ask(running, role, audiences, ttl=ttl))
    assert (refusal.code, refusal.fields) == (code, fields)
    lines = running.new_log_lines()
    assert [line["decision"] for line in lines if line.get("type") == "audit"] == ["refused"]
    assert not any(line.get("level") == "error" for line in lines)


def test_a_caller_without_a_spiffe_id_of_its_own_gets_none(running: Service) -> None:
    people = running.put_role(
        {
            "callers": [{"authenticator": "people"}],
            "require_cn": False,
            "jwt_svid": {"audiences": ["*"]},
        }
    )
    token = running.tokens.jwt({"sub": "ann", "iss": "https://people.example"})
    refusal = Refusal(lambda: ask(running, people, token=token))
    assert (refusal.code, refusal.fields) == (DENIED, ["spiffe_id"])


def test_no_credential_and_a_jwt_svid_of_ours_are_both_no_credential(
    running: Service, role: str
) -> None:
    for token in ("", ask(running, role, ["spiffe://mesh.example/meshmint/server"]).token):
        assert Refusal(lambda t=token: ask(running, role, token=t)).code == (
            grpc.StatusCode.UNAUTHENTICATED
        )


# --- the log, and the clients ----------------------------------------------------------


def test_every_token_has_its_line_and_none_is_in_the_log(running: Service, role: str) -> None:
    running.new_log_lines()
    answer = ask(running, role)
    until(lambda: answer.jwt_id in running.whole_log(), 5)
    (line,) = [line for line in running.new_log_lines() if line.get("jti") == answer.jwt_id]
    assert line["event"] == "JWT-SVID issued"
    assert (line["type"], line["decision"]) == ("audit", "granted")
    assert line["caller"] == "system:serviceaccount:shop:cart"
    assert (line["role"], line["spiffe_id"], line["audiences"]) == (role, SVID, [AUDIENCE])
    assert line["key"] == jwt.get_unverified_header(answer.token)["kid"]
    whole = running.whole_log()
    for part in answer.token.split(".")[1:]:
        assert part not in whole


def test_both_clients_get_one(running: Service, role: str, tmp_path: Path) -> None:
    def check(svid: JwtSvid, keys: str) -> None:
        claims = jwt_verifier.verify(svid.token, json.loads(keys), AUDIENCE, time.time(), tmp_path)
        assert claims["sub"] == svid.spiffe_id == SVID
        assert svid.audiences == (AUDIENCE,)
        assert svid.expires_at - svid.issued_at == timedelta(minutes=2)
        assert svid.token not in repr(svid)

    settings: Any = {"token": running.token(), "root_certificates": running.ca_file}
    minutes = timedelta(minutes=2)
    with Client(running.address, **settings) as client:
        bundle = next(client.watch_trust_bundle())
        check(client.issue_jwt_svid([AUDIENCE], role, ttl=minutes), bundle.jwt_keys)
        assert client.get_chain().jwt_keys == bundle.jwt_keys
        with pytest.raises(PermissionDenied) as caught:
            client.issue_jwt_svid(["https://other.example"], role)
        assert [violation.field for violation in caught.value.violations] == ["audiences[0]"]

    async def asynchronous() -> JwtSvid:
        async with AsyncClient(running.address, **settings) as client:
            return await client.issue_jwt_svid([AUDIENCE], role, ttl=minutes)

    check(asyncio.run(asynchronous()), bundle.jwt_keys)


def test_the_command_prints_a_token_that_verifies(
    running: Service, role: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MESHMINT_TOKEN", running.token())
    connection = ["--server", running.address, "--ca-file", str(running.ca_file)]
    command = ["jwt-svid", "--audience", AUDIENCE, "--role", role, *connection]
    assert main(command) == 0
    token = capsys.readouterr().out.strip()
    keys = json.loads(running.stub.GetChain(pb.GetChainRequest(), timeout=10).jwt_keys)
    assert jwt_verifier.verify(token, keys, AUDIENCE, time.time(), tmp_path)["sub"] == SVID
    assert main(["jwt-svid", "--audience", "https://other.example", *connection]) == 3
    assert "audiences[0]" in capsys.readouterr().err


# --- where they are off ----------------------------------------------------------------


def test_a_service_that_issues_none_says_how_it_would(service: Service) -> None:
    refusal = Refusal(lambda: ask(service))
    assert (refusal.code, refusal.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "JWT_SVIDS_OFF",
    )
    assert "jwt_svid.enabled" in refusal.message
    for name in ("openid-configuration", "jwks.json"):
        assert get(service, "/.well-known/" + name)[0] == 404
    assert service.stub.GetChain(pb.GetChainRequest(), timeout=10).jwt_keys == '{"keys":[]}'
