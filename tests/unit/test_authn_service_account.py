"""Claims of service-account tokens: whole, in agreement, and real Kubernetes names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from meshmint_server.authn import Authenticators, KubernetesSettings, Refusal
from meshmint_server.errors import Unauthenticated
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import TokenIssuer


@pytest.fixture
def issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path)


@pytest.fixture
def authenticators(issuer: TokenIssuer) -> Authenticators:
    settings = KubernetesSettings(
        name="cluster",
        issuer=issuer.issuer,
        audiences=("meshmint",),
        jwks_file=issuer.jwks_file,
    )
    return Authenticators.build([settings], TrustDomain("example.org"))


async def reason(authenticators: Authenticators, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)
    return caught.value.reason


def details(**changes: Any) -> dict[str, Any]:
    base = {
        "namespace": "shop",
        "serviceaccount": {"name": "cart", "uid": "u-1"},
        "pod": {"name": "cart-1", "uid": "p-1"},
    }
    return {name: value for name, value in (base | changes).items() if value is not None}


@pytest.mark.parametrize(
    "claims",
    [
        {"kubernetes.io": None},
        {"kubernetes.io": "shop"},
        {"kubernetes.io": {}},
        {"kubernetes.io": details(namespace=None)},
        {"kubernetes.io": details(serviceaccount=None)},
        {"kubernetes.io": details(serviceaccount={"name": "cart"})},
        {"kubernetes.io": details(serviceaccount={"uid": "u-1"})},
        {"kubernetes.io": details(serviceaccount={"name": "cart", "uid": ""})},
        {"kubernetes.io": details(pod={"name": "cart-1"})},
        {"kubernetes.io": details(pod="cart-1")},
        {"kubernetes.io": details(), "sub": "system:serviceaccount:shop:admin"},
        {"kubernetes.io": details(), "sub": None},
        {"kubernetes.io": details(), "sub": "cart"},
        {
            "kubernetes.io": details(serviceaccount={"name": "admin", "uid": "u-1"}),
            "sub": "system:serviceaccount:shop:cart",
        },
    ],
)
async def test_kubernetes_claims_must_be_whole_and_agree(
    authenticators: Authenticators, issuer: TokenIssuer, claims: dict[str, Any]
) -> None:
    token = issuer.kubernetes_token("shop", "cart", **claims)

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


@pytest.mark.parametrize(
    "name",
    ["Shop", "shop/admin", "shop\n", "..", "-shop", "shop-", "a" * 64, "shop.x", "", "shöp", "*"],
)
async def test_a_namespace_is_a_dns_label(
    authenticators: Authenticators, issuer: TokenIssuer, name: str
) -> None:
    token = issuer.kubernetes_token(name, "cart")

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


@pytest.mark.parametrize("name", ["Cart", "a/b", "cart\n", "..", "a..b", "a" * 254, "", "a:b", "*"])
async def test_a_service_account_is_a_dns_subdomain(
    authenticators: Authenticators, issuer: TokenIssuer, name: str
) -> None:
    token = issuer.kubernetes_token("shop", name)

    assert await reason(authenticators, token) == Refusal.CREDENTIAL_MALFORMED


async def test_a_token_bound_to_no_pod_has_no_pod_attributes(
    authenticators: Authenticators, issuer: TokenIssuer
) -> None:
    token = issuer.jwt(issuer.kubernetes_claims(pod=None, node=None))

    caller = await authenticators.authenticate(token)

    assert not [name for name in caller.attributes if name.startswith("kubernetes.pod")]
    assert "kubernetes.node" not in caller.attributes
