"""A TokenReview that fails is never the caller's fault, and files may be replaced while running."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from meshmint_server.authn import Authenticators
from meshmint_server.errors import VerifierUnavailable
from support.cluster import Cluster, running_cluster
from support.identity_provider import Answer, IdentityServer, TestCa, replace_file

REVIEW = IdentityServer.TOKEN_REVIEW


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        yield cluster


async def outage(authenticators: Authenticators, token: str) -> VerifierUnavailable:
    with pytest.raises(VerifierUnavailable) as caught:
        await authenticators.authenticate(token)
    assert token not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    assert caught.value.retry_after is not None
    return caught.value


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
        Answer(delay=20),
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
    timeout = 1 if fault.delay else 10
    async with cluster.authenticators(mode=mode, timeout=timeout, **keys) as authenticators:
        error = await outage(authenticators, token)
        assert cluster.server.count("/elsewhere") == 0

        cluster.server.faults.clear()
        cluster.skipped += error.retry_after or 0
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
    async with cluster.authenticators(max_reviews=2, timeout=30) as authenticators:
        tokens = [cluster.issuer.kubernetes_token("shop", f"sa-{n}") for n in range(50)]
        results = await asyncio.gather(
            *(authenticators.authenticate(token) for token in tokens), return_exceptions=True
        )

    refused = [result for result in results if isinstance(result, VerifierUnavailable)]
    assert peak <= 2
    assert len(refused) == 50 - 2 * 17
    assert all(error.retry_after for error in refused)


async def test_a_token_does_not_wait_for_its_turn_for_ever(cluster: Cluster) -> None:
    cluster.server.faults[REVIEW] = lambda honest: replace(honest, delay=20)
    async with cluster.authenticators(max_reviews=1, timeout=0.5) as authenticators:
        tokens = [cluster.issuer.kubernetes_token("shop", f"sa-{n}") for n in range(3)]
        results = await asyncio.gather(
            *(authenticators.authenticate(token) for token in tokens), return_exceptions=True
        )

    assert all(isinstance(result, VerifierUnavailable) for result in results)
    assert cluster.server.count(REVIEW) < 3
