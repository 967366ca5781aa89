"""The bytes of a JWT-SVID: what is signed, and the signature as JWS has it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.issuance import jws
from meshmint_server.policy import JwtSvidDecision
from meshmint_server.spiffe import SpiffeId

NOW = datetime(2031, 5, 4, 12, tzinfo=UTC)
DECISION = JwtSvidDecision(
    "api",
    SpiffeId.parse("spiffe://mesh.example/a"),
    ("https://a.example",),
    NOW,
    NOW - timedelta(seconds=20),
    NOW + timedelta(seconds=60),
    (),
)
COORDINATES = st.integers(1, 2**256 - 1)


def members(part: bytes) -> dict[str, object]:
    found: dict[str, object] = json.loads(base64.urlsafe_b64decode(part + b"=="))
    return found


def test_header_and_claims_are_those_of_the_standard_and_no_others() -> None:
    for issuer in (None, "https://jwt.example"):
        data = jws.to_be_signed(DECISION, key_id="k1", jwt_id="7f", issuer=issuer)
        header, claims = map(members, data.split(b"."))
        assert header == {"alg": "ES256", "kid": "k1", "typ": "JWT"}
        seconds = int(NOW.timestamp())
        expected = {
            "sub": "spiffe://mesh.example/a",
            "aud": ["https://a.example"],
            "exp": seconds + 60,
            "iat": seconds - 20,
            "jti": "7f",
        }
        assert claims == (expected if issuer is None else {**expected, "iss": issuer})


@given(r=COORDINATES | st.integers(1, 255), s=COORDINATES | st.integers(1, 255))
def test_each_half_of_a_signature_has_32_bytes_however_small_it_is(r: int, s: int) -> None:
    raw = jws.raw_signature(encode_dss_signature(r, s))
    assert len(raw) == 64
    assert (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")) == (r, s)


@pytest.mark.parametrize(
    "der", [b"", b"0", bytes(70), encode_dss_signature(2**256, 1), encode_dss_signature(1, 0)]
)
def test_what_is_no_signature_on_p256_is_refused(der: bytes) -> None:
    with pytest.raises(ValueError, match=r"r and s|ASN.1|DER|pars"):
        jws.raw_signature(der)


def test_pyjwt_believes_signatures_with_short_halves() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    data = jws.to_be_signed(DECISION, key_id="k1", jwt_id="7f", issuer=None)
    while True:  # one in 128
        der = key.sign(data, ec.ECDSA(hashes.SHA256()))
        if min(decode_dss_signature(der)) < 2**248:
            break
    token = jws.assemble(data, der)
    options = {"verify_aud": False, "verify_exp": False, "verify_iat": False}
    claims = jwt.decode(token, key.public_key(), algorithms=["ES256"], options=options)
    assert claims["jti"] == "7f"
