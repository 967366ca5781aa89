"""Tokens that must not pass, each with the reason that the caller is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from meshmint_server.authn import Authenticators, KubernetesSettings, Refusal
from meshmint_server.errors import Unauthenticated
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import TokenIssuer

TRUST_DOMAIN = TrustDomain("example.org")


@pytest.fixture
def issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path)


@pytest.fixture
def authenticators(issuer: TokenIssuer) -> Authenticators:
    return build(issuer)


def build(issuer: TokenIssuer) -> Authenticators:
    return Authenticators.build(
        [
            KubernetesSettings(
                name="cluster",
                issuer=issuer.issuer,
                audiences=("meshmint",),
                jwks_file=issuer.jwks_file,
            )
        ],
        TRUST_DOMAIN,
    )


async def refusal(authenticators: Authenticators, token: str | None) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)
    error = caught.value
    if token:
        assert token not in error.message
        for part in token.split("."):
            assert len(part) < 20 or part not in error.message
    return error


async def reason(authenticators: Authenticators, token: str | None) -> str:
    return (await refusal(authenticators, token)).reason


def encoded(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_a_service_account_token_becomes_a_caller(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    caller = await authenticators.authenticate(issuer.kubernetes_token("shop", "cart"))

    assert caller.authenticator == "cluster"
    assert caller.subject == "system:serviceaccount:shop:cart"
    assert str(caller.spiffe_id) == "spiffe://example.org/ns/shop/sa/cart"
    assert caller.attributes["kubernetes.namespace"] == "shop"
    assert caller.attributes["kubernetes.service_account"] == "cart"
    assert caller.attributes["kubernetes.pod"] == "cart-7c9"
    assert caller.attributes["kubernetes.node"] == "node-1"
    assert caller.attributes["claims.aud"] == ("meshmint",)
    assert caller.expires_at.timestamp() == pytest.approx(time.time() + 600, abs=5)


@pytest.mark.parametrize("token", [None, ""])
async def test_no_token_is_missing(authenticators: Authenticators, token: str | None) -> None:
    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MISSING


@pytest.mark.parametrize(
    "token", ["garbage", "a.b", "a.b.c.d", "a b.c.d", "é.b.c", ".e30.x", "..", "Bearer a.b.c"]
)
async def test_what_is_no_jws_is_malformed(authenticators: Authenticators, token: str) -> None:
    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b'{"alg": "RS256"}', b"[]"),
        (b"[]", b"{}"),
        (b"{", b"{}"),
        (b"{}", b"\xff\xfe"),
        (b"{}", b'{"iss": "a", "iss": "b"}'),
        (b'{"alg": "RS256", "alg": "none"}', b'{"iss": "a"}'),
        (b"{}", b'{"iss": "a", "exp": NaN}'),
        (b"{}", b'{"iss": "a", "exp": Infinity}'),
        (b"{}", b'{"iss": "a", "exp": 1e999}'),
        (b"{}", b"[" * 8000),
        (b"{}", b'{"a":' * 1800 + b"1" + b"}" * 1800),
        (b"{}", b'{"iss": "a", "n": ' + b"9" * 6000 + b"}"),
        (b"{}", b'{"iss": "a", "s": "\\ud800"}'),
        (b"{}", b'{"iss": 7}'),
        (b"{}", b"{}"),
    ],
)
async def test_header_and_payload_must_be_unambiguous_json(
    authenticators: Authenticators, header: bytes, payload: bytes
) -> None:
    token = f"{encoded(header)}.{encoded(payload)}.eA"

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


@pytest.mark.parametrize("ending", ["\n", " ", "=", "\x00"])
async def test_trailing_characters_are_not_trimmed(
    authenticators: Authenticators, issuer: TokenIssuer, ending: str
) -> None:
    token = issuer.kubernetes_token() + ending

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


@pytest.mark.parametrize("size", [16 * 1024 + 1, 1024 * 1024])
async def test_a_token_over_the_limit_is_refused_unread(
    authenticators: Authenticators, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr("meshmint_server.authn.token.parse_json_object", pytest.fail)
    monkeypatch.setattr("hashlib.sha256", pytest.fail)

    assert await reason(authenticators, "x" * size) == Refusal.CREDENTIAL_MALFORMED


async def test_alg_none_is_refused(authenticators: Authenticators, issuer: TokenIssuer) -> None:
    claims = encoded(issuer.kubernetes_claims())
    for alg in ("none", "None", "NONE", ""):
        header = encoded({"alg": alg, "kid": issuer.kid})
        for signature in ("", "eA"):
            token = f"{header}.{claims}.{signature}"
            assert await reason(authenticators, token) == Refusal.SIGNATURE_INVALID


@pytest.mark.parametrize("alg", ["HS256", "HS512", "RS512", "PS256", "EdDSA", "ES384", 7, None])
async def test_an_algorithm_outside_the_allow_list_is_refused(
    authenticators: Authenticators, issuer: TokenIssuer, alg: object
) -> None:
    header = encoded({"alg": alg, "kid": issuer.kid})
    token = f"{header}.{encoded(issuer.kubernetes_claims())}.{encoded(b'x' * 256)}"

    error = await refusal(authenticators, token)

    assert error.reason == Refusal.SIGNATURE_INVALID
    assert "ES256, RS256" in error.message


async def test_hs256_signed_with_the_rsa_public_key_is_refused(tmp_path: Path) -> None:
    issuer = TokenIssuer(tmp_path, algorithm="RS256")
    authenticators = build(issuer)
    body = f"{encoded({'alg': 'HS256', 'kid': issuer.kid})}.{encoded(issuer.kubernetes_claims())}"
    for secret in (issuer.public_pem(), issuer.public_pem().strip()):
        mac = hmac.new(secret, body.encode(), hashlib.sha256).digest()
        token = f"{body}.{encoded(mac)}"
        assert await reason(authenticators, token) == Refusal.SIGNATURE_INVALID


async def test_an_unknown_kid_is_refused(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    token = issuer.jwt(issuer.kubernetes_claims(), headers={"kid": "never-published"})

    error = await refusal(authenticators, token)

    assert error.reason == Refusal.SIGNATURE_INVALID
    assert "never-published" in error.message


async def test_a_kid_that_is_no_string_is_malformed(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    header = encoded({"alg": "ES256", "kid": ["x"]})
    token = f"{header}.{encoded(issuer.kubernetes_claims())}.{encoded(b'x' * 256)}"

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


async def test_a_token_without_kid_is_tried_with_every_key(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    issuer.rotate(keep_old=True)
    oldest = next(iter(issuer.keys.values()))

    token = issuer.jwt(issuer.kubernetes_claims(), headers={"kid": None}, key=oldest)

    assert (await authenticators.authenticate(token)).attributes["kubernetes.namespace"] == "shop"


async def test_keys_offered_by_the_token_itself_are_ignored(
    authenticators: Authenticators, issuer: TokenIssuer, tmp_path: Path
) -> None:
    stranger = TokenIssuer(tmp_path / "stranger", issuer=issuer.issuer)
    offered = stranger.jwks()["keys"][0]
    headers = {
        "kid": issuer.kid,
        "jwk": offered,
        "jku": stranger.jwks_file.as_uri(),
        "x5u": "https://stranger.test/certificate.pem",
        "x5c": ["MIIB"],
    }
    for name in (*headers, None):
        chosen = {"kid": issuer.kid} | ({name: headers[name]} if name else headers)
        token = stranger.jwt(stranger.kubernetes_claims(), headers=chosen)
        assert await reason(authenticators, token) == Refusal.SIGNATURE_INVALID

    harmless = issuer.jwt(issuer.kubernetes_claims(), headers=headers)
    assert (await authenticators.authenticate(harmless)).subject.endswith(":shop:cart")


async def test_critical_header_extensions_are_refused(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    for crit in (["exp"], [], "b64"):
        body = f"{encoded({'alg': 'ES256', 'crit': crit})}.{encoded(issuer.kubernetes_claims())}"
        token = f"{body}.{encoded(b'x' * 256)}"
        assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", None, "anything"])
async def test_typ_does_not_matter(
    authenticators: Authenticators, issuer: TokenIssuer, typ: str | None
) -> None:
    token = issuer.jwt(issuer.kubernetes_claims(), headers={"typ": typ})

    assert (await authenticators.authenticate(token)).authenticator == "cluster"


async def test_a_changed_payload_does_not_verify(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    header, _, signature = issuer.kubernetes_token("shop", "cart").split(".")
    forged = encoded(issuer.kubernetes_claims("shop", "admin"))

    assert (
        await reason(authenticators, f"{header}.{forged}.{signature}") == Refusal.SIGNATURE_INVALID
    )
    assert await reason(authenticators, f"{header}.{forged}.") == Refusal.SIGNATURE_INVALID


async def test_a_token_signed_by_a_stranger_does_not_verify(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    token = issuer.jwt(issuer.kubernetes_claims(), key=key)

    assert await reason(authenticators, token) == Refusal.SIGNATURE_INVALID


async def test_an_elliptic_signature_for_an_rsa_key_does_not_verify(tmp_path: Path) -> None:
    issuer = TokenIssuer(tmp_path, algorithm="RS256")
    key = ec.generate_private_key(ec.SECP256R1())

    token = issuer.jwt(issuer.kubernetes_claims(), key=key, algorithm="ES256")

    assert await reason(build(issuer), token) == Refusal.SIGNATURE_INVALID


async def test_an_unknown_issuer_is_named(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    token = issuer.kubernetes_token(iss="https://elsewhere.test")

    error = await refusal(authenticators, token)

    assert error.reason == Refusal.ISSUER_UNKNOWN
    assert "https://elsewhere.test" in error.message


@pytest.mark.parametrize("iss", ["https://cluster.test/", "https://CLUSTER.test", " ", ""])
async def test_an_issuer_is_compared_exactly(
    authenticators: Authenticators, issuer: TokenIssuer, iss: str
) -> None:
    assert await reason(authenticators, issuer.kubernetes_token(iss=iss)) == Refusal.ISSUER_UNKNOWN


@pytest.mark.parametrize(
    "aud", [None, "other", ["other"], [], "", "Meshmint", ["meshmint\n"], {"meshmint": 1}, [7]]
)
async def test_a_wrong_or_missing_audience_is_told_the_right_one(
    authenticators: Authenticators, issuer: TokenIssuer, aud: Any
) -> None:
    error = await refusal(authenticators, issuer.kubernetes_token(aud=aud))

    assert error.reason == Refusal.AUDIENCE_MISMATCH
    assert "'meshmint'" in error.message


async def test_one_of_several_audiences_is_enough(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    token = issuer.kubernetes_token(audience=["https://kubernetes.default.svc", "meshmint"])

    assert (await authenticators.authenticate(token)).authenticator == "cluster"


async def test_an_expired_token_is_told_when_it_expired(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    error = await refusal(authenticators, issuer.kubernetes_token(exp=1700000000))

    assert error.reason == Refusal.CREDENTIAL_EXPIRED
    assert "2023-11-14T22:13:20Z" in error.message


async def test_leeway_reaches_past_expiry_and_no_further(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    assert await authenticators.authenticate(issuer.kubernetes_token(ttl=-5))
    assert (
        await reason(authenticators, issuer.kubernetes_token(ttl=-11)) == Refusal.CREDENTIAL_EXPIRED
    )


@pytest.mark.parametrize("claim", ["nbf", "iat"])
async def test_a_token_from_the_future_is_not_yet_valid(
    authenticators: Authenticators, issuer: TokenIssuer, claim: str
) -> None:
    now = int(time.time())

    assert await authenticators.authenticate(issuer.kubernetes_token(**{claim: now + 5}))
    error = await refusal(authenticators, issuer.kubernetes_token(**{claim: now + 60}))

    assert error.reason == Refusal.CREDENTIAL_NOT_YET_VALID
    assert claim in error.message


@pytest.mark.parametrize("exp", [None, "1900000000", True, [], -1, 1e300, 10**30, {"v": 1}])
async def test_an_expiry_must_be_a_sensible_number(
    authenticators: Authenticators, issuer: TokenIssuer, exp: Any
) -> None:
    token = issuer.kubernetes_token(exp=exp)

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("value", ["now", True, -1, 1e20])
async def test_other_times_must_be_sensible_numbers(
    authenticators: Authenticators, issuer: TokenIssuer, claim: str, value: Any
) -> None:
    token = issuer.kubernetes_token(**{claim: value})

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED
