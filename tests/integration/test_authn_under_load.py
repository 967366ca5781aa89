"""Bursts of tokens while their verifier is slow, throttles, lies, hangs or is down.

Each time: what reached the verifier, counted there; what the callers were told;
and that whoever is known goes on.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from meshmint_server.authn import Authenticators, Refusal
from meshmint_server.errors import MeshmintError, VerifierUnavailable
from support.cluster import Cluster, running_cluster
from support.identity_provider import Answer, IdentityServer

REVIEW = IdentityServer.TOKEN_REVIEW
JWKS = IdentityServer.JWKS


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        cluster.stop_clock()
        yield cluster


@pytest.fixture
def held(cluster: Cluster) -> Iterator[threading.Event]:
    """Answers of strangers' reviews wait for it; those of shop/cart do not."""
    held = threading.Event()

    def hold(honest: Answer) -> Answer:
        user = honest.body["status"].get("user", {}).get("username", "")
        if user != "system:serviceaccount:shop:cart":
            held.wait(20)
        return honest

    cluster.server.faults[REVIEW] = hold
    yield held
    held.set()


def by_keys(cluster: Cluster, **changes: Any) -> dict[str, Any]:
    """Settings that check offline, with keys fetched from the cluster's server."""
    return {"mode": "jwks", "jwks_url": cluster.server.url + JWKS,
            "jwks_ca_file": cluster.ca_file, **changes}  # fmt: skip


def tokens(cluster: Cluster, count: int, name: str = "stranger") -> list[str]:
    return [cluster.issuer.kubernetes_token("shop", f"{name}-{n}") for n in range(count)]


async def outcomes(authenticators: Authenticators, burst: Iterable[str]) -> Counter[str]:
    """What a burst of tokens came to: "accepted", or the reason; every delay is told."""
    results = await asyncio.gather(
        *(authenticators.authenticate(token) for token in burst), return_exceptions=True
    )
    for result in results:
        if isinstance(result, VerifierUnavailable):
            assert result.retry_after is not None
            assert 0 < result.retry_after <= 30
        elif isinstance(result, BaseException) and not isinstance(result, MeshmintError):
            raise result
    return Counter(
        result.reason if isinstance(result, MeshmintError) else "accepted" for result in results
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it is a server's thread that is waited for
            await asyncio.sleep(0.01)


# --- keys ------------------------------------------------------------------------------


async def test_a_burst_on_slow_keys_costs_one_fetch_and_is_served(cluster: Cluster) -> None:
    cluster.server.faults[JWKS] = lambda honest: replace(honest, delay=0.3)
    async with cluster.authenticators(**by_keys(cluster)) as authenticators:
        found = await outcomes(authenticators, tokens(cluster, 1000))

    assert found == {"accepted": 1000}
    assert cluster.server.count(JWKS) == 1


async def test_bursts_on_keys_that_are_down_cost_one_fetch_per_back_off(cluster: Cluster) -> None:
    cluster.server.faults[JWKS] = Answer(503)
    burst = tokens(cluster, 300)
    async with cluster.authenticators(**by_keys(cluster)) as authenticators:
        for fetches in (1, 2, 3):
            for _ in range(3):
                assert await outcomes(authenticators, burst) == {"VERIFIER_UNAVAILABLE": 300}
            assert cluster.server.count(JWKS) == fetches
            cluster.skipped += 30

        cluster.server.faults.clear()
        assert await outcomes(authenticators, burst) == {"accepted": 300}
    assert cluster.server.count(JWKS) == 4


async def test_no_more_calls_wait_for_hanging_keys_than_may(cluster: Cluster) -> None:
    cluster.server.faults[JWKS] = Answer(delay=20)
    settings = by_keys(cluster, max_waiting=10, timeout=30)
    async with cluster.authenticators(**settings) as authenticators:
        waiting = [
            asyncio.create_task(authenticators.authenticate(token)) for token in tokens(cluster, 10)
        ]
        await until(lambda: cluster.server.count(JWKS) == 1)

        # At once: the endpoint has not answered yet, and does not.
        assert await outcomes(authenticators, tokens(cluster, 90)) == {"VERIFIER_BUSY": 90}
        assert not any(task.done() for task in waiting)
        # Places are given back, also by those who give up.
        waiting.pop().cancel()
        await asyncio.sleep(0)
        waiting.append(asyncio.create_task(authenticators.authenticate(tokens(cluster, 1)[0])))
        await asyncio.sleep(0)
        assert not waiting[-1].done()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert cluster.server.count(JWKS) == 1


async def test_whoever_the_keys_at_hand_know_goes_on_while_strangers_wait_for_others(
    cluster: Cluster,
) -> None:
    settings = by_keys(cluster, max_waiting=10, timeout=30)
    async with cluster.authenticators(**settings) as authenticators:
        known = cluster.issuer.kubernetes_token()
        caller = await authenticators.authenticate(known)
        cluster.server.faults[JWKS] = Answer(delay=20)
        strangers = [
            cluster.issuer.jwt(cluster.issuer.kubernetes_claims(), headers={"kid": f"unknown-{n}"})
            for n in range(50)
        ]
        flood = [asyncio.create_task(outcomes(authenticators, [token])) for token in strangers]
        await until(lambda: cluster.server.count(JWKS) == 2)

        assert await authenticators.authenticate(known) is caller
        assert await outcomes(authenticators, tokens(cluster, 100)) == {"accepted": 100}
        assert sum(task.done() for task in flood) == 40
    await asyncio.gather(*flood, return_exceptions=True)
    assert cluster.server.count(JWKS) == 2


async def test_rotation_after_rotation_under_load_refuses_nobody(cluster: Cluster) -> None:
    found: Counter[str] = Counter()
    rounds = 6
    async with cluster.authenticators(**by_keys(cluster)) as authenticators:
        for _ in range(rounds):
            old = tokens(cluster, 20, "old")
            cluster.issuer.rotate(keep_old=True)
            new = tokens(cluster, 80, "new")
            found += await outcomes(authenticators, old + new)
            cluster.skipped += 10
        assert set(found) == {"accepted", "KEY_NOT_YET_KNOWN"}
        # One look for the first keys, then one per cool-down of 30 seconds.
        assert cluster.server.count(JWKS) <= 1 + rounds * 10 // 30 + 1

        cluster.skipped += 30
        assert await outcomes(authenticators, new) == {"accepted": 80}


# --- reviews ---------------------------------------------------------------------------


async def test_a_thousand_calls_with_one_unverified_token_cost_one_review(
    cluster: Cluster,
) -> None:
    token = cluster.issuer.kubernetes_token()
    async with cluster.authenticators(max_reviews=1) as authenticators:
        assert await outcomes(authenticators, [token] * 1000) == {"accepted": 1000}
    assert cluster.server.count(REVIEW) == 1


async def test_a_full_queue_still_takes_calls_with_a_token_that_is_in_it(
    cluster: Cluster, held: threading.Event
) -> None:
    async with cluster.authenticators(max_reviews=1, timeout=30) as authenticators:
        queued = tokens(cluster, 17)
        first = asyncio.create_task(outcomes(authenticators, queued))
        await until(lambda: cluster.server.count(REVIEW) == 1)
        again = asyncio.create_task(outcomes(authenticators, queued))

        assert await outcomes(authenticators, tokens(cluster, 50, "late")) == {"VERIFIER_BUSY": 50}
        held.set()
        assert await first == await again == {"accepted": 17}
    assert cluster.server.count(REVIEW) == 17


async def test_calls_with_one_token_are_bounded_too(
    cluster: Cluster, held: threading.Event
) -> None:
    token = cluster.issuer.kubernetes_token("shop", "stranger")
    async with cluster.authenticators(max_waiting=20, timeout=30) as authenticators:
        waiting = asyncio.create_task(outcomes(authenticators, [token] * 100))
        await until(lambda: cluster.server.count(REVIEW) == 1)
        held.set()
        assert await waiting == {"accepted": 20, "VERIFIER_BUSY": 80}
    assert cluster.server.count(REVIEW) == 1


async def test_a_reviewer_that_throttles_is_left_alone_for_as_long_as_it_says(
    cluster: Cluster,
) -> None:
    async with cluster.authenticators(max_reviews=4, cache_for=60) as authenticators:
        known = cluster.issuer.kubernetes_token()
        caller = await authenticators.authenticate(known)
        cluster.server.faults[REVIEW] = Answer(429, headers={"retry-after": "8"})

        burst = tokens(cluster, 40)
        assert await outcomes(authenticators, burst) == {"VERIFIER_UNAVAILABLE": 40}
        reached = cluster.server.count(REVIEW)
        assert reached <= 1 + 3, "no more than were under way when it said so"

        cluster.skipped += 7
        assert await outcomes(authenticators, burst) == {"VERIFIER_UNAVAILABLE": 40}
        assert cluster.server.count(REVIEW) == reached
        assert await authenticators.authenticate(known) is caller

        # Then one asks for all.
        cluster.skipped += 1
        assert await outcomes(authenticators, burst) == {"VERIFIER_UNAVAILABLE": 40}
        assert cluster.server.count(REVIEW) == reached + 1

        cluster.server.faults.clear()
        cluster.skipped += 8
        await authenticators.authenticate(burst[0])
        assert await outcomes(authenticators, burst) == {"accepted": 40}


async def test_throttling_without_a_word_for_how_long_counts_for_a_second(
    cluster: Cluster,
) -> None:
    cluster.server.faults[REVIEW] = Answer(429)
    async with cluster.authenticators(max_reviews=1) as authenticators:
        burst = tokens(cluster, 10)
        assert await outcomes(authenticators, burst) == {"VERIFIER_UNAVAILABLE": 10}
        assert cluster.server.count(REVIEW) == 1

        cluster.server.faults.clear()
        cluster.skipped += 1
        await authenticators.authenticate(burst[0])


async def test_a_reviewer_that_hangs_has_one_request_of_ours_and_known_callers_go_on(
    cluster: Cluster, held: threading.Event
) -> None:
    settings = {"max_reviews": 4, "timeout": 1.5, "cache_for": 60}
    async with cluster.authenticators(**settings) as authenticators:
        known = cluster.issuer.kubernetes_token()
        caller = await authenticators.authenticate(known)

        found = await outcomes(authenticators, tokens(cluster, 200))
        assert set(found) == {"VERIFIER_UNAVAILABLE", "VERIFIER_BUSY"}
        reached = cluster.server.count(REVIEW)
        # Three at a time are let, and two failures are not yet a reason to pause.
        assert reached <= 1 + 3 + 2
        assert await authenticators.authenticate(known) is caller

        for trial in (1, 2):
            cluster.skipped += 10
            found = await outcomes(authenticators, tokens(cluster, 200))
            assert set(found) <= {"VERIFIER_UNAVAILABLE", "VERIFIER_BUSY"}
            assert cluster.server.count(REVIEW) == reached + trial
            assert await authenticators.authenticate(known) is caller

        # It is back: so are we, after the longest pause there is.
        held.set()
        cluster.skipped += 5
        await authenticators.authenticate(tokens(cluster, 1)[0])
        assert await outcomes(authenticators, tokens(cluster, 3)) == {"accepted": 3}


async def test_a_review_that_nobody_waited_for_serves_whoever_comes_back(
    cluster: Cluster, held: threading.Event
) -> None:
    token = cluster.issuer.kubernetes_token("shop", "stranger")
    async with cluster.authenticators(max_reviews=1, timeout=30) as authenticators:
        impatient = asyncio.create_task(authenticators.authenticate(token))
        await until(lambda: cluster.server.count(REVIEW) == 1)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        cluster.skipped += 4
        held.set()

        # One at a time: when this one is over, the other is too.
        await authenticators.authenticate(cluster.issuer.kubernetes_token())
        assert await authenticators.authenticate(token)
        assert cluster.server.count(REVIEW) == 2
        # It counts from when the cluster was asked, not from when somebody came back.
        cluster.skipped += 5
        assert await authenticators.authenticate(token)
        assert cluster.server.count(REVIEW) == 2
        cluster.skipped += 1
        assert await authenticators.authenticate(token)
        assert cluster.server.count(REVIEW) == 3


async def test_a_rotation_of_keys_costs_no_further_reviews(cluster: Cluster) -> None:
    settings = by_keys(cluster, mode="both", cache_for=60, refresh_interval=5)
    async with cluster.authenticators(**settings) as authenticators:
        known = tokens(cluster, 20, "known")
        assert await outcomes(authenticators, known) == {"accepted": 20}
        cluster.issuer.rotate(keep_old=True)
        await authenticators.authenticate(cluster.issuer.kubernetes_token())
        assert cluster.server.count(JWKS) == 2
        assert cluster.server.count(REVIEW) == 21

        assert await outcomes(authenticators, known) == {"accepted": 20}
    assert cluster.server.count(REVIEW) == 21


async def test_where_nothing_may_be_remembered_every_call_is_reviewed(cluster: Cluster) -> None:
    token = cluster.issuer.kubernetes_token()
    async with cluster.authenticators(cache_for=0) as authenticators:
        for _ in range(3):
            await authenticators.authenticate(token)
    assert cluster.server.count(REVIEW) == 3


async def test_strangers_do_not_keep_known_callers_out_of_the_reviewer(
    cluster: Cluster, held: threading.Event
) -> None:
    async with cluster.authenticators(max_reviews=4, timeout=30) as authenticators:
        known = [cluster.issuer.kubernetes_token() for _ in range(20)]
        assert await outcomes(authenticators, known) == {"accepted": 20}
        cluster.skipped += 11  # Past the authenticator's limit: they must be reviewed again.
        flood = asyncio.create_task(outcomes(authenticators, tokens(cluster, 200)))
        await until(lambda: cluster.server.count(REVIEW) == 20 + 3)

        assert await outcomes(authenticators, known) == {"accepted": 20}
        assert cluster.server.count(REVIEW) == 20 + 3 + 20
        held.set()
        assert (await flood)["VERIFIER_BUSY"] == 200 - 3 * 17


async def test_a_reviewer_that_lies_about_audiences_is_asked_once_a_token_and_costs_nobody_else(
    cluster: Cluster,
) -> None:
    async with cluster.authenticators(cache_for=60) as authenticators:
        known = cluster.issuer.kubernetes_token()
        caller = await authenticators.authenticate(known)
        cluster.lie(lambda status: status.update(audiences=["https://kubernetes.default.svc"]))

        lied_about = tokens(cluster, 10) * 20
        assert await outcomes(authenticators, lied_about) == {Refusal.CREDENTIAL_REJECTED: 200}
        assert await outcomes(authenticators, lied_about) == {Refusal.CREDENTIAL_REJECTED: 200}
        assert cluster.server.count(REVIEW) == 1 + 10
        with pytest.raises(MeshmintError, match="audience"):
            await authenticators.authenticate(lied_about[0])
        assert await authenticators.authenticate(known) is caller

        cluster.server.faults.clear()
        cluster.skipped += 4
        assert await outcomes(authenticators, lied_about) == {"accepted": 200}


@pytest.mark.parametrize(
    "error",
    [
        "[invalid bearer token, etcdserver: request timed out]",
        "context deadline exceeded",
        'Post "https://webhook.test/": dial tcp 10.0.0.1:443: connect: connection refused',
        "[invalid bearer token, oidc: authenticator not initialized]",
    ],
)
async def test_a_cluster_in_trouble_that_says_no_is_not_believed_and_the_token_not_remembered(
    cluster: Cluster, error: str
) -> None:
    cluster.lie(lambda status: (status.clear(), status.update(error=error)))
    burst = tokens(cluster, 3) * 10
    async with cluster.authenticators() as authenticators:
        assert await outcomes(authenticators, burst) == {"VERIFIER_UNAVAILABLE": 30}

        cluster.server.faults.clear()
        assert await outcomes(authenticators, burst) == {"accepted": 30}
    assert cluster.server.count(REVIEW) == 3 + 3


async def test_refused_tokens_push_out_no_remembered_ones_and_are_bounded(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshmint_server.authn.token_review.MAX_VERDICTS", 5)
    async with cluster.authenticators(cache_for=60, max_remembered=1) as authenticators:
        known = cluster.issuer.kubernetes_token()
        caller = await authenticators.authenticate(known)
        cluster.lie(lambda status: status.update(authenticated=False))
        bad = tokens(cluster, 20)
        for token in bad:
            assert await outcomes(authenticators, [token]) == {Refusal.CREDENTIAL_REJECTED: 1}
        assert cluster.server.count(REVIEW) == 21

        # The last five are known to be bad, the others are asked about again.
        assert await outcomes(authenticators, [*bad[15:], bad[0]]) == {
            Refusal.CREDENTIAL_REJECTED: 6
        }
        assert cluster.server.count(REVIEW) == 22
        assert await authenticators.authenticate(known) is caller
        assert cluster.server.count(REVIEW) == 22


async def test_a_token_that_the_cluster_stops_accepting_is_known_no_more(
    cluster: Cluster, held: threading.Event
) -> None:
    """It queues with the strangers from then on."""
    async with cluster.authenticators(max_reviews=4, timeout=30) as authenticators:
        token = cluster.issuer.kubernetes_token()
        await authenticators.authenticate(token)
        honest = cluster.server.faults.pop(REVIEW)
        cluster.lie(lambda status: status.update(authenticated=False))
        cluster.skipped += 11
        assert await outcomes(authenticators, [token]) == {Refusal.CREDENTIAL_REJECTED: 1}

        cluster.server.faults[REVIEW] = honest
        cluster.skipped += 4
        flood = asyncio.create_task(outcomes(authenticators, tokens(cluster, 3 * 17)))
        await until(lambda: cluster.server.count(REVIEW) == 2 + 3)
        assert await outcomes(authenticators, [token]) == {"VERIFIER_BUSY": 1}
        held.set()
        await flood


async def test_requests_to_verifiers_are_measured_by_outcome(cluster: Cluster) -> None:
    def measured(asked_for: str, outcome: str) -> float | None:
        labels = {"authenticator": "measured", "asked_for": asked_for, "outcome": outcome}
        return prometheus_client.REGISTRY.get_sample_value(
            "meshmint_verifier_seconds_count", labels
        )

    settings = by_keys(cluster, mode="both", name="measured", timeout=0.5)
    async with cluster.authenticators(**settings) as authenticators:
        for fault, outcome in (
            (Answer(500), "failed"),
            (Answer(429), "throttled"),
            (Answer(delay=20), "timed_out"),
            (Answer(201, {"status": {}}), "answered"),
        ):
            cluster.server.faults[REVIEW] = fault
            await outcomes(authenticators, [cluster.issuer.kubernetes_token()])
            assert measured("review", outcome) == 1
            cluster.skipped += 30
    assert measured("keys", "answered") == 1
