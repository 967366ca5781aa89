"""Whatever arrives as a token, it is refused or it is the very token that was signed."""

from __future__ import annotations

import asyncio
import base64
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meshmint_server.authn import Authenticators, Clock, KubernetesSettings
from meshmint_server.authn.claims import claim_attributes
from meshmint_server.authn.identity_template import IdentityTemplate
from meshmint_server.authn.token import parse_token
from meshmint_server.errors import Unauthenticated
from meshmint_server.spiffe import SpiffeId, TrustDomain
from support.identity_provider import TokenIssuer

TRUST_DOMAIN = TrustDomain("example.org")
BASE64URL = string.ascii_letters + string.digits + "-_"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=12,
)


def refused_or_parsed(token: str) -> None:
    try:
        parse_token(token)
    except Unauthenticated:
        return


@settings(deadline=None)
@given(st.text() | st.text(alphabet=BASE64URL + "."))
def test_any_text_is_parsed_or_refused(token: str) -> None:
    refused_or_parsed(token)


@settings(deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_any_bytes_in_the_parts_are_parsed_or_refused(header: bytes, payload: bytes) -> None:
    parts = [base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, payload)]

    refused_or_parsed(f"{parts[0]}.{parts[1]}.eA")


@settings(deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=8))
def test_any_claims_become_bounded_attributes_or_are_refused(claims: dict[str, object]) -> None:
    try:
        attributes = claim_attributes(claims)  # type: ignore[arg-type]
    except Unauthenticated:
        return
    assert len(attributes) <= 256
    assert all(name.startswith("claims.") for name in attributes)
    assert all(isinstance(value, str | tuple) for value in attributes.values())


@settings(deadline=None)
@given(st.text(), st.text())
def test_a_template_renders_valid_ids_and_never_two_callers_to_one(one: str, other: str) -> None:
    template = IdentityTemplate.parse(
        "spiffe://{trust_domain}/a/{claims.a}/b-{claims.b}", TRUST_DOMAIN, {}
    )

    first = template.render({"claims.a": one, "claims.b": other})
    second = template.render({"claims.a": other, "claims.b": one})

    if first is not None:
        assert SpiffeId.parse(str(first)) == first
        assert first.trust_domain == TRUST_DOMAIN
        assert (first == second) == (one == other)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, KubernetesSettings]:
    issuer = TokenIssuer(tmp_path_factory.mktemp("issuer"))
    settings = KubernetesSettings(
        name="cluster",
        issuer=issuer.issuer,
        audiences=("meshmint",),
        jwks_file=issuer.jwks_file,
    )
    return issuer.kubernetes_token(ttl=3600), settings


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_token_with_one_character_changed_is_refused(
    signed: tuple[str, KubernetesSettings], data: st.DataObject
) -> None:
    token, authenticator = signed
    at = data.draw(st.integers(0, len(token) - 1))
    character = data.draw(st.sampled_from(BASE64URL + ".= \n\x00").filter(lambda c: c != token[at]))
    changed = token[:at] + character + token[at + 1 :]
    authenticators = Authenticators.build([authenticator], TRUST_DOMAIN, clock=Clock())

    with pytest.raises(Unauthenticated):
        asyncio.run(authenticators.authenticate(changed))
