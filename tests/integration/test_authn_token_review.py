"""TokenReview against a real HTTPS API server: what is asked, and which answers are believed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from meshmint_server.authn import Authenticators, Refusal
from meshmint_server.errors import Unauthenticated
from support.cluster import Cluster, running_cluster
from support.identity_provider import IdentityServer, TokenIssuer

REVIEW = IdentityServer.TOKEN_REVIEW


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        yield cluster


async def refusal(authenticators: Authenticators, token: str) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)
    assert token not in caught.value.message
    return caught.value


async def test_the_api_server_is_asked_with_our_audiences_and_credential(cluster: Cluster) -> None:
    token = cluster.issuer.kubernetes_token("shop", "cart")
    async with cluster.authenticators() as authenticators:
        caller = await authenticators.authenticate(token)

    assert caller.subject == "system:serviceaccount:shop:cart"
    assert str(caller.spiffe_id) == "spiffe://example.org/ns/shop/sa/cart"
    assert caller.attributes["kubernetes.pod"] == "cart-7c9"
    (seen,) = cluster.server.seen
    assert seen.authorization == "Bearer reviewer-1"
    assert seen.body["kind"] == "TokenReview"
    assert seen.body["spec"] == {"token": token, "audiences": ["meshmint", "meshmint.example.org"]}


async def test_a_reviewed_token_is_remembered_for_ten_seconds(cluster: Cluster) -> None:
    token = cluster.issuer.kubernetes_token()
    async with cluster.authenticators() as authenticators:
        for skipped in (0, 5, 16):
            cluster.skipped = skipped
            await authenticators.authenticate(token)

    assert cluster.server.count(REVIEW) == 2


async def test_one_review_serves_all_who_wait_for_it(cluster: Cluster) -> None:
    token = cluster.issuer.kubernetes_token()
    async with cluster.authenticators() as authenticators:
        callers = await asyncio.gather(*(authenticators.authenticate(token) for _ in range(10)))

    assert {caller.subject for caller in callers} == {"system:serviceaccount:shop:cart"}
    assert cluster.server.count(REVIEW) == 1


async def test_a_token_that_the_cluster_refuses_is_rejected_and_asked_about_once(
    cluster: Cluster,
) -> None:
    token = cluster.issuer.kubernetes_token()
    cluster.lie(lambda status: status.update(authenticated=False, error="[token revoked]"))
    async with cluster.authenticators() as authenticators:
        for _ in range(3):
            assert (await refusal(authenticators, token)).reason == Refusal.CREDENTIAL_REJECTED
        assert cluster.server.count(REVIEW) == 1

        cluster.server.faults.clear()
        cluster.skipped = 4
        assert await authenticators.authenticate(token)


async def test_the_reviewers_error_is_not_shown_to_the_caller_nor_the_token_logged(
    cluster: Cluster,
) -> None:
    token = cluster.issuer.kubernetes_token()
    cluster.lie(lambda status: status.update(authenticated=False, error=f"[bad token {token}]"))
    async with cluster.authenticators() as authenticators:
        with structlog.testing.capture_logs() as logged:
            error = await refusal(authenticators, token)

    assert "bad token" not in error.message
    assert len(logged) == 1
    assert token not in str(logged)


@pytest.mark.parametrize(
    "change",
    [
        lambda status: status.pop("audiences"),
        lambda status: status.update(audiences=[]),
        lambda status: status.update(audiences=["https://kubernetes.default.svc"]),
        lambda status: status.update(audiences="meshmint"),
        lambda status: status.update(audiences=[["meshmint"]]),
    ],
    ids=["none", "empty", "others", "text", "nested"],
)
async def test_a_reviewer_that_does_not_vouch_for_our_audience_is_not_believed(
    cluster: Cluster, change: Callable[[dict[str, Any]], object]
) -> None:
    cluster.lie(change)
    async with cluster.authenticators() as authenticators:
        error = await refusal(authenticators, cluster.issuer.kubernetes_token())

    assert error.reason == Refusal.CREDENTIAL_REJECTED
    assert "audience" in error.message


@pytest.mark.parametrize(
    "change",
    [
        lambda status: status.update(authenticated="true"),
        lambda status: status.update(authenticated=1),
        lambda status: status.pop("authenticated"),
        lambda status: status.pop("user"),
        lambda status: status.update(user="cart"),
        lambda status: status["user"].update(username="system:serviceaccount:shop:admin"),
        lambda status: status["user"].update(username="system:serviceaccount:other:cart"),
        lambda status: status["user"].update(username="cart"),
        lambda status: status["user"].update(uid="another"),
        lambda status: status["user"].pop("uid"),
        lambda status: status["user"].pop("extra"),
        lambda status: status["user"]["extra"].update(
            {"authentication.kubernetes.io/pod-name": ["other"]}
        ),
        lambda status: status["user"]["extra"].update(
            {"authentication.kubernetes.io/pod-uid": ["other"]}
        ),
        lambda status: status["user"]["extra"].pop("authentication.kubernetes.io/pod-uid"),
        lambda status: status["user"]["extra"].update(
            {"authentication.kubernetes.io/node-name": ["other"]}
        ),
    ],
    ids=[
        "authenticated-text",
        "authenticated-number",
        "authenticated-missing",
        "no-user",
        "user-text",
        "name",
        "namespace",
        "not-a-service-account",
        "uid",
        "no-uid",
        "no-extra",
        "pod",
        "pod-uid",
        "no-pod-uid",
        "node",
    ],
)
async def test_a_reviewer_that_vouches_for_something_else_is_not_believed(
    cluster: Cluster, change: Callable[[dict[str, Any]], object]
) -> None:
    cluster.lie(change)
    async with cluster.authenticators() as authenticators:
        error = await refusal(authenticators, cluster.issuer.kubernetes_token())

    assert error.reason == Refusal.CREDENTIAL_REJECTED


async def test_a_cluster_that_does_not_tell_the_node_is_believed(cluster: Cluster) -> None:
    cluster.lie(
        lambda status: status["user"]["extra"].pop("authentication.kubernetes.io/node-name")
    )
    async with cluster.authenticators() as authenticators:
        assert await authenticators.authenticate(cluster.issuer.kubernetes_token())


@pytest.mark.parametrize(
    "overrides",
    [{"aud": "other"}, {"exp": 1700000000}, {"kubernetes.io": None}, {"sub": "someone-else"}],
)
async def test_a_hopeless_token_is_refused_without_asking(
    cluster: Cluster, overrides: dict[str, Any]
) -> None:
    async with cluster.authenticators() as authenticators:
        await refusal(authenticators, cluster.issuer.kubernetes_token(**overrides))

    assert cluster.server.seen == []


async def test_a_forged_token_is_refused_by_the_api_server(cluster: Cluster) -> None:
    stranger = TokenIssuer(cluster.issuer.directory / "stranger", issuer=cluster.issuer.issuer)
    forged = stranger.jwt(stranger.kubernetes_claims(), headers={"kid": cluster.issuer.kid})
    async with cluster.authenticators() as authenticators:
        assert (await refusal(authenticators, forged)).reason == Refusal.CREDENTIAL_REJECTED


async def test_both_means_signature_first_then_review(cluster: Cluster) -> None:
    stranger = TokenIssuer(cluster.issuer.directory / "stranger", issuer=cluster.issuer.issuer)
    forged = stranger.jwt(stranger.kubernetes_claims(), headers={"kid": cluster.issuer.kid})
    async with cluster.authenticators(
        mode="both", jwks_file=cluster.issuer.jwks_file
    ) as authenticators:
        assert (await refusal(authenticators, forged)).reason == Refusal.SIGNATURE_INVALID
        assert cluster.server.seen == []

        token = cluster.issuer.kubernetes_token()
        assert await authenticators.authenticate(token)
        assert cluster.server.count(REVIEW) == 1

        cluster.lie(lambda status: status.update(authenticated=False))
        cluster.skipped = 11
        assert (await refusal(authenticators, token)).reason == Refusal.CREDENTIAL_REJECTED


async def test_a_token_bound_to_no_pod_is_reviewed_too(cluster: Cluster) -> None:
    token = cluster.issuer.jwt(cluster.issuer.kubernetes_claims(pod=None, node=None))
    async with cluster.authenticators() as authenticators:
        assert await authenticators.authenticate(token)
