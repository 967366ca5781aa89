"""SPIFFE IDs: what the standard refuses is refused, whatever the spelling."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain


@pytest.mark.parametrize(
    "text",
    [
        "spiffe://example.org",
        "spiffe://example.org/ns/shop/sa/cart",
        "spiffe://10.0.0.1/x",
        "spiffe://a_b-c.d/A.b_c-9",
        "spiffe://example.org/" + "a" * (2048 - len("spiffe://example.org/")),
    ],
)
def test_canonical_id_survives_a_round_trip(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "spiffe:///path",
        "http://example.org/x",
        "SPIFFE://example.org/x",
        "spiffe://Example.org/x",
        "spiffe://example.org/",
        "spiffe://example.org//x",
        "spiffe://example.org/x/",
        "spiffe://example.org/./x",
        "spiffe://example.org/../x",
        "spiffe://example.org/%2e%2e/x",
        "spiffe://example.org/x?q=1",
        "spiffe://example.org/x#f",
        "spiffe://example.org:8443/x",
        "spiffe://user@example.org/x",
        "spiffe://[::1]/x",
        "spiffe://exämple.org/x",
        "spiffe://example.org/x\n",
        "spiffe://example.org\n/x",
        " spiffe://example.org/x",
        "spiffe://example.org/x\x00",
        "spiffe://" + "a" * 256 + "/x",
        "spiffe://example.org/" + "a" * 2048,
    ],
)
def test_malformed_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        SpiffeId.parse(text)


@given(st.text(max_size=60))
def test_whatever_is_accepted_is_canonical(tail: str) -> None:
    text = "spiffe://" + tail
    try:
        parsed = SpiffeId.parse(text)
    except InvalidSpiffeId:
        return
    assert str(parsed) == text
    assert set(text.removeprefix("spiffe://")) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_/"
    )


def test_trust_domain_id_has_no_path() -> None:
    assert str(TrustDomain("example.org").id) == "spiffe://example.org"
