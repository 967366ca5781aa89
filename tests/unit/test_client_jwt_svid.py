"""JWT-SVIDs and their keys in the client: what is accepted, kept and shown."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from meshmint import AnswerRefused, InvalidArgument, operations
from meshmint.jwt_svid import issue_jwt_svid
from meshmint.roles import role_message
from meshmint.v1 import certificate_service_pb2 as pb
from support.fake_service import OWN_SPIFFE_ID, FakeService


def test_a_single_string_is_not_taken_for_a_list_of_audiences() -> None:
    with pytest.raises(InvalidArgument, match=r"audiences=\['https://a.example'\]"):
        issue_jwt_svid("https://a.example", "", None, None)


def jwt_svid_answer(**claims: object) -> pb.IssueJwtSvidResponse:
    request = pb.IssueJwtSvidRequest(audiences=["a", "b"])
    return FakeService().issue_jwt_svid(request, None, **claims)


def test_a_jwt_svid_is_what_was_asked_for_and_its_token_stays_out_of_the_repr() -> None:
    answer = jwt_svid_answer()
    svid = issue_jwt_svid(["b", "a"], "", None, None).result(answer)
    assert svid.token == answer.token
    assert (svid.spiffe_id, svid.audiences) == (OWN_SPIFFE_ID, ("a", "b"))
    assert svid.expires_at - svid.issued_at == timedelta(minutes=5)
    assert answer.token not in repr(svid)
    assert answer.token.rpartition(".")[2] not in repr(svid)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"sub": "spiffe://example.org/ns/shop/sa/other"}, "another SPIFFE ID"),
        ({"aud": ["a"]}, "other audiences"),
        ({"aud": ["a", "b", "c"]}, "other audiences"),
        ({"aud": "a"}, "other audiences"),
        ({"aud": {"a": 1}}, "audiences that can be read"),
        ({"aud": ["a", 1]}, "audiences that can be read"),
        ({"aud": None}, "audiences that can be read"),
    ],
)
def test_a_token_for_somebody_else_is_not_accepted(claims: dict[str, object], message: str) -> None:
    with pytest.raises(AnswerRefused, match=message):
        issue_jwt_svid(["a", "b"], "", None, None).result(jwt_svid_answer(**claims))


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c.d", "a.!.c", "a.bnVsbA.c", "a.W10.c", "é.é.é"])
def test_what_is_no_token_is_not_accepted_and_not_told(token: str) -> None:
    answer = pb.IssueJwtSvidResponse(token=token, spiffe_id=OWN_SPIFFE_ID)
    with pytest.raises(AnswerRefused, match="cannot be read"):
        issue_jwt_svid(["a"], "", None, None).result(answer)


@pytest.mark.parametrize("document", ["[]", "{}", '{"keys":{}}', "{", "[" * 100_000, '"keys"'])
def test_what_is_no_key_set_does_not_replace_one(document: str) -> None:
    service = FakeService()
    bundle = service.bundle(1)
    bundle.jwt_keys = document
    with pytest.raises(AnswerRefused, match="no JWK set"):
        operations.watch_trust_bundle("", None).result(bundle)
    bundle.jwt_keys = ""
    assert operations.watch_trust_bundle("", None).result(bundle).jwt_keys == '{"keys":[]}'


def test_a_change_of_keys_alone_makes_a_bundle_news() -> None:
    bundle = operations.watch_trust_bundle("", None).result(FakeService().bundle(1))
    assert not operations.is_newer(bundle, bundle)
    other = replace(bundle, jwt_keys='{"keys":[{}]}', sequence=2)
    assert operations.is_newer(other, bundle)
    assert not operations.is_newer(bundle, other)


def test_the_file_of_a_token_is_private_and_holds_nothing_else(
    tmp_path: Path,
) -> None:
    svid = issue_jwt_svid(["a", "b"], "", None, None).result(jwt_svid_answer())
    path = svid.write_file(tmp_path / "new" / "token")
    assert path.read_text() == svid.token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_role_document_with_jwt_svids_becomes_the_message_it_means() -> None:
    message = role_message(
        {
            "name": "api",
            "jwt_svid": {"audiences": "https://a.example,https://b.*", "max_ttl": "10m", "ttl": 90},
        }
    )
    assert list(message.jwt_svid.audiences) == ["https://a.example", "https://b.*"]
    assert (message.jwt_svid.max_ttl.seconds, message.jwt_svid.ttl.seconds) == (600, 90)
    for wrong in ("5m", {"audience": ["a"]}, {"audiences": [], "max_ttl": "soon"}):
        with pytest.raises(InvalidArgument) as caught:
            role_message({"name": "api", "jwt_svid": wrong})
        assert [violation.field for violation in caught.value.violations] == ["role.jwt_svid"]
