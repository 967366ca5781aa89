"""What a role grants of JWT-SVIDs: the caller's own SPIFFE ID, and nothing that it does not say."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest, InvalidRole, MeshmintError, PolicyViolated
from meshmint_server.policy import (
    Bounds,
    Caller,
    JwtSvidDecision,
    JwtSvidRequest,
    ReservedNames,
    Role,
    decide_jwt_svid,
)
from meshmint_server.spiffe import SpiffeId, TrustDomain

NOW = datetime(2031, 5, 4, 12, 0, 0, 654321, tzinfo=UTC)
TRUST_DOMAIN = TrustDomain("mesh.example")
OWN = SpiffeId.parse("spiffe://mesh.example/ns/shop/sa/cart")
SERVICE = SpiffeId.parse("spiffe://mesh.example/meshmint/server")
BOUNDS = Bounds(
    TRUST_DOMAIN, timedelta(hours=1), timedelta(hours=1), ReservedNames(spiffe_id=SERVICE)
)
MINUTE = timedelta(minutes=1)
OF_THE_ROLE = ("ttl_over_max", "not_before_duration")


def role(**rules: Any) -> Role:
    fields = {key: rules.pop(key) for key in OF_THE_ROLE if key in rules}
    document = {"audiences": ["https://a.example", "https://b.*"], **rules}
    return Role.from_document({"name": "api", "require_cn": False, "jwt_svid": document, **fields})


def caller(spiffe_id: SpiffeId | None = OWN) -> Caller:
    return Caller("cluster", "system:serviceaccount:shop:cart", {}, spiffe_id, NOW)


def decide(
    granted_by: Role, *audiences: str, ttl: timedelta | None = None, by: Caller | None = None
) -> JwtSvidDecision:
    request = JwtSvidRequest(audiences or ("https://a.example",), ttl)
    return decide_jwt_svid(granted_by, by or caller(), request, now=NOW, bounds=BOUNDS)


def fields(caught: pytest.ExceptionInfo[MeshmintError]) -> list[str]:
    return [violation.field for violation in caught.value.violations]


def test_a_token_is_for_the_callers_own_id_for_whole_seconds_from_now() -> None:
    found = decide(role(), "https://b.example", "https://a.example", "https://b.example")
    assert found.spiffe_id == OWN
    assert found.audiences == ("https://b.example", "https://a.example")
    assert found.issued_at == NOW.replace(microsecond=0)
    assert found.expires_at - found.issued_at == 5 * MINUTE
    assert found.warnings == ()


def test_a_token_is_dated_back_as_far_as_the_roles_certificates() -> None:
    for fields, seconds in (({}, 30), ({"not_before_duration": "2m"}, 120)):
        found = decide(role(**fields))
        assert found.issued_at - found.dated == timedelta(seconds=seconds)


def test_the_roles_lifetime_holds_where_nobody_asks_for_another() -> None:
    rules = role(ttl="2m", max_ttl="10m")
    assert decide(rules).expires_at - decide(rules).issued_at == 2 * MINUTE
    asked = decide(rules, ttl=9 * MINUTE)
    assert asked.expires_at - asked.issued_at == 9 * MINUTE
    clamped = decide(rules, ttl=11 * MINUTE)
    assert clamped.expires_at - clamped.issued_at == 10 * MINUTE
    assert "10m" in clamped.warnings[0]
    with pytest.raises(PolicyViolated) as caught:
        decide(role(max_ttl="10m", ttl_over_max="refuse"), ttl=11 * MINUTE)
    assert fields(caught) == ["ttl"]


@pytest.mark.parametrize(
    "own",
    [
        None,
        SERVICE,
        SpiffeId.parse("spiffe://mesh.example"),
        SpiffeId.parse("spiffe://other.example/ns/shop/sa/cart"),
    ],
)
def test_an_id_that_this_service_must_not_vouch_for_gets_no_token(own: SpiffeId | None) -> None:
    with pytest.raises(PolicyViolated) as caught:
        decide(role(), by=caller(own))
    assert fields(caught) == ["spiffe_id"]


def test_a_role_without_the_rules_grants_none_and_all_faults_are_told_at_once() -> None:
    plain = Role.from_document({"name": "web", "require_cn": False})
    with pytest.raises(PolicyViolated) as caught:
        decide(plain, by=caller(None))
    assert fields(caught) == ["role", "spiffe_id"]
    with pytest.raises(InvalidRequest) as malformed:
        decide(role(), "https://c.example", "", "*", ttl=timedelta(0), by=caller(None))
    assert fields(malformed) == ["audiences[1]", "audiences[2]", "ttl"]


@pytest.mark.parametrize(
    ("rules", "field"),
    [
        ({"audiences": []}, "jwt_svid.audiences"),
        ({"audiences": ["a b"]}, "jwt_svid.audiences[0]"),
        ({"audiences": ["a", "b\x00"]}, "jwt_svid.audiences[1]"),
        ({"audiences": ["é"]}, "jwt_svid.audiences[0]"),
        ({"audiences": ["x" * 513]}, "jwt_svid.audiences[0]"),
        ({"audiences": [str(n) for n in range(101)]}, "jwt_svid.audiences"),
        ({"max_ttl": 0}, "jwt_svid.max_ttl"),
        ({"max_ttl": "24h1s"}, "jwt_svid.max_ttl"),
        ({"max_ttl": -1}, "jwt_svid.max_ttl"),
        ({"max_ttl": None}, "jwt_svid.max_ttl"),
        ({"ttl": "6m"}, "jwt_svid.ttl"),
        ({"audience": ["a"]}, "jwt_svid.audience"),
        ({"max_ttl": "soon"}, "jwt_svid.max_ttl"),
    ],
)
def test_rules_that_can_never_work_are_refused_when_they_are_written(
    rules: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRole) as caught:
        role(**rules)
    assert fields(caught) == [field]


def test_the_rules_come_back_from_the_stored_document_as_they_were() -> None:
    for rules in (role(), role(ttl="30s", max_ttl="24h"), role(audiences="a,b")):
        document = rules.document()
        assert Role.from_document(document) == rules
        assert None not in json.loads(document)["jwt_svid"].values()


def test_a_role_for_every_audience_is_said_to_be_one() -> None:
    assert any('"*"' in text for text in role(audiences=["**"]).warnings(TRUST_DOMAIN))
    assert not any("audience" in text for text in role().warnings(TRUST_DOMAIN))


@given(
    audiences=st.lists(st.text(max_size=8) | st.just("https://a.example"), max_size=20),
    seconds=st.none() | st.floats(-1e9, 4e9, allow_nan=False),
)
def test_whatever_is_asked_for_a_token_says_no_more_than_the_role(
    audiences: list[str], seconds: float | None
) -> None:
    ttl = None if seconds is None else timedelta(seconds=seconds)
    request = JwtSvidRequest(tuple(audiences), ttl)
    try:
        found = decide_jwt_svid(role(), caller(), request, now=NOW, bounds=BOUNDS)
    except (InvalidRequest, PolicyViolated):
        return
    assert found.spiffe_id == OWN
    assert set(found.audiences) == set(audiences) != set()
    assert all(a == "https://a.example" or a.startswith("https://b.") for a in found.audiences)
    assert timedelta(seconds=1) <= found.expires_at - found.issued_at <= 5 * MINUTE
