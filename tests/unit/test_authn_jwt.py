"""The jwt authenticator: key sources without a network, attributes, and SPIFFE IDs."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from meshmint_server.authn import Authenticators, Clock, JwtSettings, Refusal
from meshmint_server.errors import Unauthenticated, VerifierUnavailable
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import TestCa, TokenIssuer, replace_file

TRUST_DOMAIN = TrustDomain("example.org")


@pytest.fixture
def issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path, issuer="https://id.test")


def build(issuer: TokenIssuer, **settings: Any) -> Authenticators:
    if not {"public_keys", "public_key_files"} & set(settings):
        settings.setdefault("jwks_file", issuer.jwks_file)
    return Authenticators.build(
        [JwtSettings(name="corp", issuer=issuer.issuer, audiences=("meshmint",), **settings)],
        TRUST_DOMAIN,
        # A second passes between any two looks at this clock: files are always looked at.
        clock=Clock(monotonic=count().__next__),
    )


async def reason(authenticators: Authenticators, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)
    return caught.value.reason


@pytest.mark.parametrize(
    "algorithm",
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
)
async def test_every_allowed_algorithm_verifies_from_jwks_and_from_pem(
    tmp_path: Path, algorithm: str
) -> None:
    issuer = TokenIssuer(tmp_path, algorithm=algorithm)
    token = issuer.jwt()
    pem = issuer.public_pem().decode()

    for source in ({"jwks_file": issuer.jwks_file}, {"public_keys": (pem,)}):
        authenticators = build(issuer, algorithms=(algorithm,), **source)
        assert (await authenticators.authenticate(token)).subject == "someone"
        for length in (0, 1, 64, 255, 256, 257, 2000):
            forged = f"{token.rpartition('.')[0]}.{'A' * (length * 4 // 3 // 4 * 4)}"
            assert await reason(authenticators, forged) == Refusal.SIGNATURE_INVALID


async def test_a_key_of_another_curve_than_the_algorithms_is_not_used(tmp_path: Path) -> None:
    issuer = TokenIssuer(tmp_path, algorithm="ES384")
    published = {**issuer.jwks()["keys"][0]}
    del published["alg"]
    replace_file(issuer.jwks_file, json.dumps({"keys": [published]}).encode())
    authenticators = build(issuer, algorithms=("ES256", "ES384"))
    confused = issuer.jwt(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")

    assert await reason(authenticators, confused) == Refusal.SIGNATURE_INVALID
    assert (await authenticators.authenticate(issuer.jwt())).subject == "someone"


def published(**changes: Any) -> dict[str, Any]:
    """A JWK of KEY with changes; None leaves a member out."""
    jwk = {**RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "k", **changes}
    return {name: value for name, value in jwk.items() if value is not None}


KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL_KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505
HUGE_KEY_N = "1" + "A" * 1500


@pytest.mark.parametrize(
    ("jwk", "is_usable"),
    [
        (published(), True),
        (published(use="sig", alg="RS256", key_ops=["verify"]), True),
        (published(kid=None), True),
        (published(use="enc"), False),
        (published(use=7), False),
        (published(alg="RS512"), False),
        (published(alg="ES256"), False),
        (published(alg="HS256"), False),
        (published(key_ops=["sign"]), False),
        (published(key_ops="verify"), False),
        (published(kid=7), False),
        (published(kid="other"), False),
        (published(kty="oct", k="c2VjcmV0"), False),
        (published(kty=None), False),
        (published(n=None), False),
        (published(n=7), False),
        (published(n="!"), False),
        (published(n=HUGE_KEY_N), False),
        (published(e="AQ"), False),
        (published(d=RSAAlgorithm.to_jwk(KEY, as_dict=True)["d"]), False),
        ("not an object", False),
    ],
)
async def test_a_published_key_is_used_only_for_what_it_says(
    issuer: TokenIssuer, jwk: Any, is_usable: bool
) -> None:
    replace_file(issuer.jwks_file, json.dumps({"keys": [jwk]}).encode())
    authenticators = build(issuer)
    token = issuer.jwt(key=KEY, algorithm="RS256", headers={"kid": "k"})

    if is_usable:
        assert (await authenticators.authenticate(token)).subject == "someone"
    else:
        assert await reason(authenticators, token) == Refusal.SIGNATURE_INVALID


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_an_rsa_key_under_2048_bits_is_not_used(issuer: TokenIssuer) -> None:
    jwk = {**RSAAlgorithm.to_jwk(SMALL_KEY.public_key(), as_dict=True), "kid": "k"}
    replace_file(issuer.jwks_file, json.dumps({"keys": [jwk]}).encode())
    token = issuer.jwt(key=SMALL_KEY, algorithm="RS256", headers={"kid": "k"})

    assert await reason(build(issuer), token) == Refusal.SIGNATURE_INVALID


async def test_unusable_keys_do_not_spoil_the_others(issuer: TokenIssuer) -> None:
    odd = [
        {**ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256K1()).public_key(), as_dict=True)},
        {"kty": "OKP", "crv": "X25519", "x": "AAAA"},
        {"kty": "new-kind"},
        {**OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True)},
    ]
    keys = [*odd, *issuer.jwks()["keys"]]
    replace_file(issuer.jwks_file, json.dumps({"keys": keys}).encode())

    assert (await build(issuer).authenticate(issuer.jwt())).subject == "someone"


async def test_a_replaced_jwks_file_counts_at_once(issuer: TokenIssuer) -> None:
    authenticators = build(issuer)
    old = issuer.jwt()
    await authenticators.authenticate(old)

    issuer.rotate()

    assert (await authenticators.authenticate(issuer.jwt())).subject == "someone"
    assert await reason(authenticators, old) == Refusal.SIGNATURE_INVALID


async def test_a_jwks_file_rewritten_in_place_counts_at_once(issuer: TokenIssuer) -> None:
    authenticators = build(issuer)
    await authenticators.authenticate(issuer.jwt())
    path, target = issuer.jwks_file, issuer.directory / "elsewhere.json"
    issuer.jwks_file = target
    issuer.rotate()

    path.write_bytes(target.read_bytes())

    assert (await authenticators.authenticate(issuer.jwt())).subject == "someone"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"keys": 7}', None])
async def test_a_jwks_file_broken_later_leaves_the_last_good_keys(
    issuer: TokenIssuer, content: bytes | None
) -> None:
    authenticators = build(issuer)
    await authenticators.authenticate(issuer.jwt())

    if content is None:
        issuer.jwks_file.unlink()
    else:
        replace_file(issuer.jwks_file, content)

    assert (await authenticators.authenticate(issuer.jwt())).subject == "someone"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"keys": 7}', None])
async def test_keys_never_read_are_no_fault_of_the_token(
    issuer: TokenIssuer, content: bytes | None
) -> None:
    good = issuer.jwks_file.read_bytes()
    issuer.jwks_file.unlink()
    if content is not None:
        issuer.jwks_file.write_bytes(content)
    authenticators = build(issuer)

    with pytest.raises(VerifierUnavailable) as caught:
        await authenticators.authenticate(issuer.jwt())
    assert caught.value.retry_after
    assert str(issuer.jwks_file) not in caught.value.message

    replace_file(issuer.jwks_file, good)
    assert (await authenticators.authenticate(issuer.jwt())).subject == "someone"


async def test_an_empty_key_set_means_that_no_key_is_valid(issuer: TokenIssuer) -> None:
    authenticators = build(issuer)
    await authenticators.authenticate(issuer.jwt())

    replace_file(issuer.jwks_file, b'{"keys": []}')

    assert await reason(authenticators, issuer.jwt()) == Refusal.SIGNATURE_INVALID


async def test_public_key_files_may_hold_keys_and_certificates(
    issuer: TokenIssuer, tmp_path: Path
) -> None:
    ca = TestCa(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(ca.pem + issuer.public_pem())

    authenticators = build(issuer, public_key_files=(both,))

    assert (await authenticators.authenticate(issuer.jwt())).subject == "someone"


async def test_a_replaced_public_key_file_counts_at_once(issuer: TokenIssuer) -> None:
    authenticators = build(issuer, public_key_files=(issuer.public_key_file,))
    old = issuer.jwt()
    await authenticators.authenticate(old)

    issuer.rotate()

    assert (await authenticators.authenticate(issuer.jwt())).subject == "someone"
    assert await reason(authenticators, old) == Refusal.SIGNATURE_INVALID


async def test_claims_become_flat_attributes(issuer: TokenIssuer) -> None:
    token = issuer.jwt(
        {
            "sub": "ci",
            "groups": ["ops", "dev"],
            "none": [],
            "numbers": [1, 2.5, True],
            "project": {"path": "shop/cart", "id": 42, "public": False, "deep": {"er": "x"}},
            "https://corp.test/team": "mesh",
            "objects": [{"a": 1}],
            "nothing": json.loads("null"),
        }
    )

    attributes = (await build(issuer).authenticate(token)).attributes

    assert {name: value for name, value in attributes.items() if name != "claims.exp"} == {
        "claims.iss": "https://id.test",
        "claims.aud": "meshmint",
        "claims.sub": "ci",
        "claims.iat": attributes["claims.iat"],
        "claims.groups": ("ops", "dev"),
        "claims.none": (),
        "claims.numbers": ("1", "2.5", "true"),
        "claims.project.path": "shop/cart",
        "claims.project.id": "42",
        "claims.project.public": "false",
        "claims.project.deep.er": "x",
        "claims.https://corp.test/team": "mesh",
    }


@pytest.mark.parametrize(
    "claims",
    [
        {f"c{number}": "x" for number in range(300)},
        {"a.b": "x", "a": {"b": "y"}},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": "x"}}}}}}}}},
        {"a" * 1500: {str(number): "x" for number in range(40)}},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "x" * 1025},
        {"sub": "eve\0"},
        {"sub": "eve\nalice"},
        {"sub": "eve\x1b[2K"},
        {"sub": "eve\u202e"},
    ],
)
async def test_claims_that_no_role_could_match_are_malformed(
    issuer: TokenIssuer, claims: dict[str, Any]
) -> None:
    assert await reason(build(issuer), issuer.jwt(claims)) == Refusal.CREDENTIAL_MALFORMED


async def test_a_jwt_caller_has_no_spiffe_id_by_default(issuer: TokenIssuer) -> None:
    assert (await build(issuer).authenticate(issuer.jwt())).spiffe_id is None


@pytest.mark.parametrize(
    ("claims", "spiffe_id"),
    [
        ({"sub": "ci", "team": "mesh"}, "spiffe://example.org/team/mesh/svc-ci"),
        ({"sub": "ci"}, None),
        ({"sub": "a/b", "team": "mesh"}, None),
        ({"sub": "a@b", "team": "mesh"}, None),
        ({"sub": "ci", "team": ".."}, None),
        ({"sub": "ci", "team": "."}, None),
        ({"sub": "ci", "team": ""}, None),
        ({"sub": "ci", "team": "mesh\n"}, None),
        ({"sub": "ci", "team": "%2e%2e"}, None),
        ({"sub": "ci", "team": ["mesh"]}, None),
        ({"sub": "ci", "team": "x" * 2048}, None),
    ],
)
async def test_a_template_gives_a_spiffe_id_only_if_it_renders_whole(
    issuer: TokenIssuer, claims: dict[str, Any], spiffe_id: str | None
) -> None:
    template = "spiffe://{trust_domain}/team/{claims.team}/svc-{claims.sub}"

    caller = await build(issuer, spiffe_id=template).authenticate(issuer.jwt(claims))

    assert caller.spiffe_id is None if spiffe_id is None else str(caller.spiffe_id) == spiffe_id


async def test_public_numbers_alone_do_not_matter_for_trust(issuer: TokenIssuer) -> None:
    # The same key published under a stranger's issuer vouches for nobody here.
    pem = issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    authenticators = build(issuer, public_keys=(pem.decode(),))

    assert await reason(authenticators, issuer.jwt({"iss": "https://x"})) == Refusal.ISSUER_UNKNOWN
