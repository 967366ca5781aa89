"""Which JWT-SVIDs hold: those of the standard, signed by the subject's own trust domain."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st
from meshmint.agent.identities import Bundle
from meshmint.agent.sockets.jwt_validation import TokenRefused, has_keys, validate
from meshmint.agent.sockets.spiffe_ids import trust_domain_of
from support.agent_identities import Domain, jwk_set

DOMAIN, OTHER = Domain(), Domain("other.example")
BUNDLES = {one.name: one.bundle() for one in (DOMAIN, OTHER)}
WEB = "spiffe://example.org/ns/shop/sa/web"
RSA = rsa.generate_private_key(65537, 2048)


def refused(token: str, audience: str = "them", bundles: Any = None) -> str:
    with pytest.raises(TokenRefused) as found:
        validate(token, audience, BUNDLES if bundles is None else bundles)
    text = str(found.value)
    assert not any(part and part in text for part in token.split(".") if len(part) > 8)
    return text


def signed(key: Any, algorithm: str, jwks: list[dict[str, Any]], **headers: Any) -> tuple[str, Any]:
    """A good token by another key, and the bundles that have it."""
    now = datetime.now(UTC)
    token = jwt.encode(
        {"sub": WEB, "aud": "them", "exp": now + timedelta(minutes=5)},
        key,
        algorithm=algorithm,
        headers={name: one for name, one in {"kid": "one", **headers}.items() if one},
    )
    bundle = Bundle("example.org", (), json.dumps({"keys": jwks}).encode())
    return token, {"example.org": bundle}


def rsa_jwk(key: rsa.RSAPrivateKey = RSA, **changes: Any) -> dict[str, Any]:
    made = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
    return {**made, "kid": "one", "use": "jwt-svid", **changes}


def ec_jwk(key: ec.EllipticCurvePrivateKey, **changes: Any) -> dict[str, Any]:
    made = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return {**made, "kid": "one", "use": "jwt-svid", **changes}


def test_good_token_holds_and_tells_its_claims() -> None:
    found = validate(DOMAIN.token(WEB, ["us", "them"], more={"a": 1}), "them", BUNDLES)

    assert found.spiffe_id == WEB
    assert found.claims["more"] == {"a": 1}


@pytest.mark.parametrize(
    "algorithm", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512"]
)
def test_every_algorithm_of_the_standard_holds(algorithm: str) -> None:
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    if algorithm in curves:
        key: Any = ec.generate_private_key(curves[algorithm])
        token, bundles = signed(key, algorithm, [ec_jwk(key)])
    else:
        token, bundles = signed(RSA, algorithm, [rsa_jwk()])

    assert validate(token, "them", bundles).spiffe_id == WEB


def test_token_without_key_id_is_tried_with_every_key_that_fits() -> None:
    others = [ec_jwk(ec.generate_private_key(ec.SECP256R1()), kid=str(n)) for n in range(3)]
    token, bundles = signed(DOMAIN.jwt_key, "ES256", [*others, ec_jwk(DOMAIN.jwt_key)], kid=None)
    assert "kid" not in jwt.get_unverified_header(token)

    assert validate(token, "them", bundles).spiffe_id == WEB


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"lifetime": timedelta(minutes=-2)}, "expired"),
        ({"exp": None}, "missing"),
        ({"aud": None}, "missing|audience"),
        ({"aud": []}, "missing|audience"),
        ({"aud": "others"}, "another audience"),
        ({"aud": [["them"]]}, "malformed|audience"),
        ({"sub": None}, "no subject"),
        ({"sub": 7}, "no subject"),
        ({"exp": "tomorrow"}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"exp": float("nan")}, "malformed"),
        ({"nbf": datetime.now(UTC) + timedelta(hours=1)}, "not valid yet"),
        ({"iat": datetime.now(UTC) + timedelta(hours=1)}, "not valid yet"),
    ],
)
def test_claims_that_are_missing_wrong_or_over_are_refused(
    claims: dict[str, Any], reason: str
) -> None:
    lifetime = claims.pop("lifetime", timedelta(minutes=5))
    token = DOMAIN.token(WEB, ["them"], lifetime=lifetime, **claims)

    assert re.search(reason, refused(token))


@pytest.mark.parametrize(
    "subject",
    [
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org/web\n",
        "spiffe://example.org/../web",
        "spiffe://Example.org/web",
        "spiffe://example.org:8443/web",
        "https://example.org/web",
        "spiffe://example.org/" + "x" * 2048,
        "spiffe://" + "x" * 256 + "/web",
        "web",
        "",
    ],
)
def test_subject_that_is_no_spiffe_id_of_a_workload_is_refused(subject: str) -> None:
    assert trust_domain_of(subject) is None
    assert "not the SPIFFE ID" in refused(DOMAIN.token(subject, ["them"]))


def test_key_of_one_trust_domain_vouches_for_no_other() -> None:
    assert "no key of the trust domain" in refused(
        OTHER.token("spiffe://example.org/web", ["them"])
    )
    assert "no keys of the trust domain nowhere.example" in refused(
        DOMAIN.token("spiffe://nowhere.example/web", ["them"])
    )


@pytest.mark.parametrize(
    "headers",
    [
        {"typ": "JOSE"},
        {"typ": "JWT"},
    ],
)
def test_type_of_the_standard_holds(headers: dict[str, Any]) -> None:
    assert validate(DOMAIN.token(WEB, ["them"], headers=headers), "them", BUNDLES)


@pytest.mark.parametrize(
    "headers",
    [
        {"typ": "jwt"},
        {"typ": "at+jwt"},
        {"typ": ["JWT"]},
        {"jku": "https://evil.example/keys"},
        {"jwk": {"kty": "EC"}},
        {"x5u": "https://evil.example"},
        {"crit": ["exp"]},
        {"kid": "two"},
        {"kid": ""},
    ],
)
def test_header_of_another_type_key_or_with_more_in_it_is_refused(headers: dict[str, Any]) -> None:
    refused(DOMAIN.token(WEB, ["them"], headers=headers))


def test_algorithms_outside_the_standard_are_refused() -> None:
    now = datetime.now(UTC) + timedelta(minutes=5)
    claims = {"sub": WEB, "aud": "them", "exp": now}
    public = json.loads(BUNDLES["example.org"].jwt_keys)["keys"][0]["x"]
    tokens = [
        jwt.encode(claims, None, algorithm="none", headers={"kid": "one"}),
        # The public key as a secret.
        jwt.encode(claims, public, algorithm="HS256", headers={"kid": "one"}),
        jwt.encode(
            claims,
            ed25519.Ed25519PrivateKey.generate(),
            algorithm="EdDSA",
            headers={"kid": "one"},
        ),
    ]

    for token in tokens:
        assert "algorithm" in refused(token)


@pytest.mark.parametrize(
    ("jwk", "why"),
    [
        ({"use": "x509-svid"}, "another use"),
        ({"use": None}, "no use"),
        ({"kid": None}, "no ID"),
        ({"kty": "oct", "k": "c2VjcmV0"}, "another kind"),
        ({"n": "!!!"}, "malformed"),
    ],
)
def test_key_that_is_not_for_jwt_svids_or_malformed_is_passed_over(
    jwk: dict[str, Any], why: str
) -> None:
    token, bundles = signed(RSA, "RS256", [rsa_jwk(**jwk)])

    assert "no key of the trust domain" in refused(token, bundles=bundles), why
    assert not has_keys(bundles["example.org"].jwt_keys)


def test_key_of_another_kind_size_or_curve_than_the_algorithm_is_not_used() -> None:
    small = rsa.generate_private_key(65537, 1024)  # noqa: S505, that is the point
    wide = ec.generate_private_key(ec.SECP384R1())
    with pytest.warns(jwt.warnings.InsecureKeyLengthWarning):
        weak = signed(small, "RS256", [rsa_jwk(small)])
    mixed = signed(RSA, "RS256", [ec_jwk(wide)])
    unsigned = parts({"alg": "ES256"}, {"sub": WEB, "aud": "them", "exp": 2**32}, "")
    r, s = decode_dss_signature(wide.sign(unsigned[:-1].encode(), ec.ECDSA(hashes.SHA256())))
    curved = (
        unsigned + encoded(r.to_bytes(48, "big") + s.to_bytes(48, "big")),
        {"example.org": Bundle("example.org", (), jwk_set(wide.public_key()))},
    )
    for token, bundles in (weak, mixed, curved):
        assert "no key of the trust domain" in refused(token, bundles=bundles)


@pytest.mark.parametrize(
    "keys",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": 7}',
        b'{"keys": [7, null]}',
        b"[" * 100_000,
        b"\xff",
        b"x" * 2**21,
    ],
    ids=lambda raw: raw[:12].decode("latin-1"),
)
def test_malformed_key_set_has_no_keys(keys: bytes) -> None:
    bundles = {"example.org": Bundle("example.org", (), keys)}

    assert not has_keys(keys)
    assert "no key" in refused(DOMAIN.token(WEB, ["them"]), bundles=bundles)


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def parts(header: object, claims: object, signature: str = "AAAA") -> str:
    return ".".join(
        (encoded(json.dumps(header).encode()), encoded(json.dumps(claims).encode()), signature)
    )


@pytest.mark.parametrize(
    "token",
    [
        "",
        "x",
        "a.b",
        "a.b.c.d.e",
        "ä.b.c",
        "x" * (16 * 1024 + 1),
        parts([], {}),
        parts({"alg": "ES256"}, 7),
        parts({"alg": ["ES256"]}, {"sub": WEB}),
        parts({"alg": "ES256", "kid": 7}, {"sub": WEB}),
        parts({"alg": "ES256", "b64": False}, {"sub": WEB}),
        f"{encoded(b'[' * 9000)}..",
        f"{encoded(b'{}')}.{encoded(b'[' * 9000)}.",
    ],
    ids=lambda token: token[:12],
)
def test_hostile_token_is_refused_and_not_a_crash(token: str) -> None:
    refused(token)


def test_claims_that_are_nested_too_deep_are_refused() -> None:
    deep: Any = "bottom"
    for _ in range(40):
        deep = [deep]

    assert "deeper" in refused(DOMAIN.token(WEB, ["them"], deep=deep))


@given(st.text(max_size=200), st.dictionaries(st.text(max_size=5), st.text(max_size=20)))
@settings(max_examples=100, deadline=None)
def test_no_text_at_all_and_no_header_makes_anything_but_a_refusal(
    text: str, header: dict[str, str]
) -> None:
    refused(text)
    signature = encoded(text.encode("utf-8", "replace"))
    refused(parts({"alg": "ES256", **header}, {"sub": WEB}, signature))
