"""The seal on a kept reply: it opens for the same caller, request and certificate alone."""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from meshmint_server.errors import InvalidRequest
from meshmint_server.issuance import Retryable
from meshmint_server.issuance.retries import Attempt
from meshmint_server.policy import Caller
from meshmint_server.store import KeptReply
from support.rows import record_row

PRIVATE_KEY = "-----BEGIN PRIVATE KEY-----\nnobody else's\n-----END PRIVATE KEY-----\n"
REQUEST = Retryable(secrets.token_urlsafe(24), "meshmint.v1.IssueRequest", b"a body")
RECORD = record_row()


def caller(authenticator: str = "cluster", subject: str = "system:serviceaccount:a:b") -> Caller:
    return Caller(authenticator, subject, {}, None, datetime.now(UTC) + timedelta(hours=1))


def kept(attempt: Attempt) -> KeptReply:
    reply = attempt.seal(
        certificate=RECORD.certificate,
        private_key_pem=PRIVATE_KEY,
        warnings=("shorter", "ünï"),
        expires_at=RECORD.not_after,
    )
    return KeptReply(reply, RECORD)


def refused(attempt: Attempt, reply: KeptReply) -> str:
    with pytest.raises(InvalidRequest) as caught:
        attempt.open(reply)
    assert [violation.field for violation in caught.value.violations] == ["request_id"]
    assert PRIVATE_KEY not in repr(caught.value)
    return caught.value.reason


def test_the_same_request_of_the_same_caller_opens_it() -> None:
    sealed = kept(Attempt.of(caller(), RECORD.role, REQUEST))
    again = Attempt.of(caller(), RECORD.role, replace(REQUEST))
    assert again.tag == sealed.reply.tag
    assert again.open(sealed) == (PRIVATE_KEY, ("shorter", "ünï"))


def test_two_seals_of_one_reply_share_nothing_but_their_tag() -> None:
    attempt = Attempt.of(caller(), RECORD.role, REQUEST)
    one, other = kept(attempt).reply.sealed, kept(attempt).reply.sealed
    assert one[:12] != other[:12]
    assert one[12:] != other[12:]


@pytest.mark.parametrize("change", [{"kind": "meshmint.v1.SignRequest"}, {"body": b"a bodY"}])
def test_another_request_with_the_same_id_finds_it_and_is_told(change: dict[str, str]) -> None:
    sealed = kept(Attempt.of(caller(), RECORD.role, REQUEST))
    other = Attempt.of(caller(), RECORD.role, replace(REQUEST, **change))  # type: ignore[arg-type]
    assert other.tag == sealed.reply.tag
    assert refused(other, sealed) == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    "other",
    [
        caller("corp"),
        caller(subject="system:serviceaccount:a:c"),
        caller("clustersystem", ":serviceaccount:a:b"),
        caller("cluster\x00", "system:serviceaccount:a:b"),
        caller(subject="lone \ud800"),
    ],
)
def test_another_caller_with_the_same_id_does_not_find_it(other: Caller) -> None:
    sealed = kept(Attempt.of(caller(), RECORD.role, REQUEST))
    attempt = Attempt.of(other, RECORD.role, REQUEST)
    assert attempt.tag != sealed.reply.tag
    assert refused(attempt, sealed) == "REQUEST_ID_REUSED"


def test_a_reply_that_was_changed_or_moved_to_another_record_does_not_open() -> None:
    attempt = Attempt.of(caller(), RECORD.role, REQUEST)
    sealed = kept(attempt)
    refused(attempt, KeptReply(sealed.reply, replace(RECORD, certificate=RECORD.certificate[::-1])))
    refused(Attempt.of(caller(), "db", REQUEST), sealed)
    whole = sealed.reply.sealed
    for place in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[place] ^= 1
        refused(attempt, KeptReply(replace(sealed.reply, sealed=bytes(changed)), RECORD))
    for part in (b"", whole[:11], whole[:12], whole[:-1]):
        refused(attempt, KeptReply(replace(sealed.reply, sealed=part), RECORD))


def test_what_is_kept_shows_neither_key_nor_id() -> None:
    attempt = Attempt.of(caller(), RECORD.role, REQUEST)
    reply = kept(attempt).reply
    for secret in (b"PRIVATE KEY", b"nobody", REQUEST.request_id.encode()):
        assert secret not in reply.sealed + reply.tag
    shown = f"{attempt!r} {REQUEST!r}"
    assert REQUEST.request_id not in shown
    assert "a body" not in shown


@pytest.mark.parametrize(
    "request_id",
    [
        "a" * 31,
        "a" * 129,
        "a" * 32 + "\n",
        "\n" + "a" * 32,
        "a" * 31 + " ",
        "a" * 31 + "\0",
        "a" * 31 + "é",
        "a" * 31 + "٣",
        "a" * 31 + "/",
        "a" * 31 + "+",
        "'; DROP TABLE replies; --" + "a" * 20,
        "a" * 1_000_000,
    ],
)
def test_what_is_no_request_id_is_refused_and_not_repeated(request_id: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Attempt.of(caller(), RECORD.role, replace(REQUEST, request_id=request_id))
    assert caught.value.reason == "REQUEST_ID_INVALID"
    assert [violation.field for violation in caught.value.violations] == ["request_id"]
    assert request_id not in f"{caught.value.message} {caught.value.violations}"


@pytest.mark.parametrize(
    "request_id",
    [
        secrets.token_hex(16),
        secrets.token_urlsafe(24),
        secrets.token_urlsafe(96),
        "0b8a2f40-7d0c-4b1e-9a55-3a4a3c1f2e6d",
    ],
    ids=["hexadecimal", "base64url", "longest", "UUID"],
)
def test_the_usual_forms_of_random_ids_are_taken(request_id: str) -> None:
    Attempt.of(caller(), RECORD.role, replace(REQUEST, request_id=request_id))
