"""Tokens that must not pass, each with the reason that the caller is told."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from meshmint_server.authn import Authenticators, KubernetesSettings, Refusal
from meshmint_server.errors import Unauthenticated
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import TokenIssuer

TRUST_DOMAIN = TrustDomain("example.org")


@pytest.fixture
def issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path, algorithm="RS256")


@pytest.fixture
def authenticators(issuer: TokenIssuer) -> Authenticators:
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
