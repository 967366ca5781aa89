"""TokenReview against a real HTTPS API server, honest, failing and lying."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from meshmint_server.authn import Authenticators, Clock, KubernetesSettings, Refusal
from meshmint_server.errors import Unauthenticated, VerifierUnavailable
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import Answer, IdentityServer, TestCa, TokenIssuer, replace_file

REVIEW = IdentityServer.TOKEN_REVIEW


@dataclass
class Cluster:
    """A cluster: its token issuer, its API server, and our files in it."""

    issuer: TokenIssuer
    ca: TestCa
    server: IdentityServer
    ca_file: Path
    token_file: Path
    skipped: float = 0.0

    @asynccontextmanager
    async def authenticators(self, **changes: Any) -> AsyncIterator[Authenticators]:
        settings = KubernetesSettings(
            **{
                "name": "cluster",
                "issuer": self.issuer.issuer,
                "audiences": ("meshmint", "meshmint.example.org"),
                "mode": "token_review",
                "api_server": self.server.url,
                "ca_file": self.ca_file,
                "reviewer_token_file": self.token_file,
                "timeout": 0.5,
                **changes,
            }
        )
        clock = Clock(monotonic=lambda: time.monotonic() + self.skipped)
        built = Authenticators.build([settings], TrustDomain("example.org"), clock=clock)
        try:
            yield built
        finally:
            await built.close()

    def lie(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Makes the reviewer change the status that it would honestly give."""

        def lying(honest: Answer) -> Answer:
            body = deepcopy(honest.body)
            change(body["status"])
            return replace(honest, body=body)

        self.server.faults[REVIEW] = lying


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    ca = TestCa(tmp_path)
    issuer = TokenIssuer(tmp_path)
    ca_file, token_file = tmp_path / "ca.crt", tmp_path / "token"
    ca_file.write_bytes(ca.pem)
    token_file.write_text("reviewer-1\n")
    with IdentityServer(issuer, ca, reviewer_token="reviewer-1") as server:
        yield Cluster(issuer, ca, server, ca_file, token_file)


async def refusal(authenticators: Authenticators, token: str) -> Unauthenticated:
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)
    assert token not in caught.value.message
    return caught.value


async def outage(authenticators: Authenticators, token: str) -> VerifierUnavailable:
    with pytest.raises(VerifierUnavailable) as caught:
        await authenticators.authenticate(token)
    assert token not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    assert caught.value.retry_after is not None
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
        for skipped in (0, 9, 11):
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


@pytest.mark.parametrize(
    "fault",
    [
        Answer(500),
        Answer(503),
        Answer(429, headers={"retry-after": "3"}),
        Answer(404),
        Answer(307, headers={"location": "/elsewhere"}),
        Answer(201, b"<html>"),
        Answer(201, b"[]"),
        Answer(201, {"kind": "Status"}),
        Answer(201, {"status": None}),
        Answer(201, b'{"status": {"authenticated": false, "authenticated": true}}'),
        Answer(delay=3),
    ],
    ids=[
        "500",
        "503",
        "429",
        "404",
        "redirect",
        "html",
        "list",
        "other-kind",
        "null-status",
        "duplicate-names",
        "hangs",
    ],
)
@pytest.mark.parametrize("mode", ["token_review", "both"])
async def test_a_failing_reviewer_is_unavailable_not_unauthenticated(
    cluster: Cluster, fault: Answer, mode: str
) -> None:
    cluster.server.faults[REVIEW] = fault
    keys = {"jwks_file": cluster.issuer.jwks_file} if mode == "both" else {}
    token = cluster.issuer.kubernetes_token()
    async with cluster.authenticators(mode=mode, **keys) as authenticators:
        await outage(authenticators, token)
        assert cluster.server.count("/elsewhere") == 0

        cluster.server.faults.clear()
        assert await authenticators.authenticate(token)


async def test_a_reviewer_that_cannot_be_reached_is_unavailable(cluster: Cluster) -> None:
    cluster.server.close()
    async with cluster.authenticators() as authenticators:
        await outage(authenticators, cluster.issuer.kubernetes_token())


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_of_our_own_credential_is_not_the_callers_fault(
    cluster: Cluster, status: int
) -> None:
    cluster.server.faults[REVIEW] = Answer(status)
    async with cluster.authenticators() as authenticators:
        error = await outage(authenticators, cluster.issuer.kubernetes_token())

    assert "operator" in error.message


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff\xfe", b"a\nb"])
async def test_an_unusable_credential_file_is_not_the_callers_fault(
    cluster: Cluster, content: bytes | None
) -> None:
    cluster.token_file.unlink()
    if content is not None:
        cluster.token_file.write_bytes(content)
    async with cluster.authenticators() as authenticators:
        error = await outage(authenticators, cluster.issuer.kubernetes_token())

    assert "operator" in error.message
    assert str(cluster.token_file) not in error.message


@pytest.mark.parametrize("content", [None, b"", b"not PEM", b"\xff"])
async def test_an_unusable_ca_file_is_not_the_callers_fault(
    cluster: Cluster, content: bytes | None
) -> None:
    cluster.ca_file.unlink()
    if content is not None:
        cluster.ca_file.write_bytes(content)
    async with cluster.authenticators() as authenticators:
        await outage(authenticators, cluster.issuer.kubernetes_token())
    assert cluster.server.seen == []


async def test_a_replaced_credential_is_used_at_once(cluster: Cluster) -> None:
    async with cluster.authenticators() as authenticators:
        await authenticators.authenticate(cluster.issuer.kubernetes_token())
        cluster.server.reviewer_token = "reviewer-2"
        token = cluster.issuer.kubernetes_token("shop", "other")
        await outage(authenticators, token)

        replace_file(cluster.token_file, b"reviewer-2")

        assert await authenticators.authenticate(token)


async def test_a_replaced_cluster_ca_is_used_at_once(cluster: Cluster, tmp_path: Path) -> None:
    new_ca = TestCa(tmp_path, "new cluster CA")
    async with cluster.authenticators() as authenticators:
        await authenticators.authenticate(cluster.issuer.kubernetes_token())
        cluster.server.use_ca(new_ca)
        cluster.server.drop_connections()
        token = cluster.issuer.kubernetes_token("shop", "other")
        await outage(authenticators, token)

        replace_file(cluster.ca_file, new_ca.pem)
        assert await authenticators.authenticate(token)

        # And connections made under the old CA are not used any more.
        replace_file(cluster.ca_file, cluster.ca.pem)
        await outage(authenticators, cluster.issuer.kubernetes_token("shop", "third"))


async def test_reviews_under_way_survive_a_replaced_ca(cluster: Cluster) -> None:
    cluster.server.faults[REVIEW] = lambda honest: replace(honest, delay=0.2)
    async with cluster.authenticators() as authenticators:
        slow = asyncio.create_task(
            authenticators.authenticate(cluster.issuer.kubernetes_token("shop", "slow"))
        )
        while not cluster.server.seen:  # noqa: ASYNC110 - waits for a server's thread
            await asyncio.sleep(0.01)
        replace_file(cluster.ca_file, cluster.ca.pem + b"\n")
        quick = authenticators.authenticate(cluster.issuer.kubernetes_token("shop", "quick"))

        callers = await asyncio.gather(slow, quick)

    assert [caller.subject[-5:] for caller in callers] == [":slow", "quick"]


async def test_reviews_under_way_are_bounded(cluster: Cluster) -> None:
    concurrent = peak = 0

    def slow(honest: Answer) -> Answer:
        nonlocal concurrent, peak
        concurrent += 1
        peak = max(peak, concurrent)
        time.sleep(0.03)
        concurrent -= 1
        return honest

    cluster.server.faults[REVIEW] = slow
    async with cluster.authenticators(max_reviews=2, timeout=5) as authenticators:
        tokens = [cluster.issuer.kubernetes_token("shop", f"sa-{n}") for n in range(50)]
        results = await asyncio.gather(
            *(authenticators.authenticate(token) for token in tokens), return_exceptions=True
        )

    refused = [result for result in results if isinstance(result, VerifierUnavailable)]
    assert peak <= 2
    assert len(refused) == 50 - 2 * 17
    assert all(error.retry_after for error in refused)


async def test_a_token_does_not_wait_for_its_turn_for_ever(cluster: Cluster) -> None:
    cluster.server.faults[REVIEW] = lambda honest: replace(honest, delay=0.8)
    async with cluster.authenticators(max_reviews=1, timeout=0.5) as authenticators:
        tokens = [cluster.issuer.kubernetes_token("shop", f"sa-{n}") for n in range(3)]
        started = time.monotonic()
        results = await asyncio.gather(
            *(authenticators.authenticate(token) for token in tokens), return_exceptions=True
        )

    assert all(isinstance(result, VerifierUnavailable) for result in results)
    assert time.monotonic() - started < 3
    assert cluster.server.count(REVIEW) < 3


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
