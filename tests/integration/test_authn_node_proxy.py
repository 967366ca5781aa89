"""Who may speak for a pod is asked of the API server, which may fail, lie or hang."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from meshmint_server.authn import Authenticators, node_proxy
from meshmint_server.errors import ImpersonationDenied, VerifierUnavailable
from meshmint_server.policy import Caller
from support.cluster import Cluster, running_cluster
from support.identity_provider import Answer, IdentityServer, make_pod

CART = "spiffe://example.org/ns/shop/sa/cart"
ACCOUNTS = frozenset({"istio-system/ztunnel"})
PROXIES = IdentityServer.pods_path("istio-system")
SHOP = IdentityServer.pods_path("shop")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        cluster.server.pods = [
            make_pod("istio-system", "ztunnel", node="node-1", name="ztunnel-1", uid="uid-1"),
            make_pod("shop", "cart", node="node-1"),
        ]
        yield cluster


def ztunnel_token(cluster: Cluster, *, pod: str = "ztunnel-1", uid: str = "uid-1") -> str:
    return cluster.issuer.jwt(
        cluster.issuer.kubernetes_claims(
            "istio-system", "ztunnel", pod=pod, pod_uid=uid, node="node-1"
        )
    )


def authenticators(cluster: Cluster, **changes: Any) -> Any:
    return cluster.authenticators(
        **{"mode": "jwks", "jwks_file": cluster.issuer.jwks_file, **changes}
    )


async def speak_for(
    cluster: Cluster, built: Authenticators, identity: str = CART, **token: str
) -> Caller:
    actor = await built.authenticate(ztunnel_token(cluster, **token))
    return await built.speak_for(actor, identity, ACCOUNTS)


async def test_the_caller_is_the_pods_account_and_has_nothing_of_the_proxy(
    cluster: Cluster,
) -> None:
    async with authenticators(cluster) as built:
        caller = await speak_for(cluster, built)

    assert caller.subject == "system:serviceaccount:shop:cart"
    assert str(caller.spiffe_id) == CART
    assert caller.authenticator == "cluster"
    assert caller.attributes == {
        "kubernetes.namespace": "shop",
        "kubernetes.service_account": "cart",
        "kubernetes.node": "node-1",
        "kubernetes.node_proxy": "istio-system/ztunnel",
    }


async def test_another_template_for_identities_is_no_way_around(cluster: Cluster) -> None:
    template = "spiffe://{trust_domain}/cluster/a/ns/{namespace}/sa/{service_account}"
    async with authenticators(cluster, spiffe_id=template) as built:
        with pytest.raises(ImpersonationDenied):
            await speak_for(cluster, built)
    assert cluster.server.count(SHOP) == 0


@pytest.mark.parametrize("path", [PROXIES, SHOP])
@pytest.mark.parametrize(
    "fault",
    [
        Answer(500),
        Answer(503),
        Answer(429, headers={"retry-after": "3"}),
        Answer(404),
        Answer(401),
        Answer(403),
        Answer(307, headers={"location": "/elsewhere"}),
        Answer(200, b"<html>"),
        Answer(200, b"[]"),
        Answer(200, {"kind": "Status", "items": []}),
        Answer(200, {"kind": "PodList"}),
        Answer(200, {"kind": "PodList", "items": {}}),
        Answer(200, {"kind": "PodList", "items": ["pod"]}),
        Answer(200, {"kind": "PodList", "items": [{"metadata": {}, "spec": {}, "status": []}]}),
        Answer(200, b'{"kind": "PodList", "items": [], "items": []}'),
        Answer(200, b'{"kind": "PodList", "items": [' + b" " * 1_100_000 + b"]}"),
        Answer(delay=20),
    ],
    ids=[
        "500", "503", "429", "404", "401", "403", "redirect", "html", "list", "other-kind",
        "no-items", "items-object", "text-item", "broken-item", "duplicate-names", "too-large",
        "hangs",
    ],
)  # fmt: skip
async def test_an_api_server_in_trouble_is_unavailable_and_never_a_yes_or_a_no(
    cluster: Cluster, path: str, fault: Answer
) -> None:
    cluster.server.faults[path] = fault
    async with authenticators(cluster, timeout=1 if fault.delay else 10) as built:
        with pytest.raises(VerifierUnavailable) as caught:
            await speak_for(cluster, built)
        assert "127.0.0.1" not in caught.value.message
        assert caught.value.retry_after is not None

        cluster.server.faults.clear()
        cluster.skipped += caught.value.retry_after
        assert await speak_for(cluster, built)


async def test_without_the_right_credential_nothing_is_granted(cluster: Cluster) -> None:
    cluster.server.reviewer_token = "another"
    async with authenticators(cluster) as built:
        with pytest.raises(VerifierUnavailable, match="operator"):
            await speak_for(cluster, built)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Answer], Answer]:
    def lie(honest: Answer) -> Answer:
        body = deepcopy(honest.body)
        for item in body["items"]:
            change(item)
        return replace(honest, body=body)

    return lie


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (PROXIES, lambda pod: pod["metadata"].update(name="ztunnel-2")),
        (PROXIES, lambda pod: pod["metadata"].update(namespace="shop")),
        (PROXIES, lambda pod: pod["metadata"].update(uid="uid-2")),
        (PROXIES, lambda pod: pod["spec"].update(serviceAccountName="other")),
        (PROXIES, lambda pod: pod["spec"].update(nodeName="node-2")),
        (PROXIES, lambda pod: pod["spec"].update(nodeName="")),
        (PROXIES, lambda pod: pod["status"].update(phase="Failed")),
        (SHOP, lambda pod: pod["metadata"].update(namespace="other")),
        (SHOP, lambda pod: pod["spec"].update(serviceAccountName="other")),
        (SHOP, lambda pod: pod["spec"].update(nodeName="node-2")),
        (SHOP, lambda pod: pod["spec"].pop("nodeName")),
        (SHOP, lambda pod: pod["status"].update(phase="Succeeded")),
    ],
)
async def test_an_answer_that_does_not_fit_the_question_makes_no_pod_appear(
    cluster: Cluster, path: str, change: Callable[[dict[str, Any]], object]
) -> None:
    cluster.server.faults[path] = changed(change)
    async with authenticators(cluster) as built:
        with pytest.raises(ImpersonationDenied):
            await speak_for(cluster, built)


async def test_a_node_with_a_name_that_is_none_is_not_asked_about(cluster: Cluster) -> None:
    cluster.server.faults[PROXIES] = changed(
        lambda pod: pod["spec"].update(nodeName="node-1,spec.nodeName!=x")
    )
    async with authenticators(cluster) as built:
        with pytest.raises(VerifierUnavailable):
            await speak_for(cluster, built)
    assert cluster.server.count(SHOP) == 0


async def test_a_pod_that_ends_counts_for_ten_seconds_more_and_a_new_one_after_one(
    cluster: Cluster,
) -> None:
    cluster.stop_clock()
    async with authenticators(cluster) as built:
        await speak_for(cluster, built)
        cart = cluster.server.pods.pop()
        cluster.skipped += 9.9
        await speak_for(cluster, built)
        cluster.skipped += 0.2
        with pytest.raises(ImpersonationDenied):
            await speak_for(cluster, built)

        cluster.server.pods.append(cart)
        with pytest.raises(ImpersonationDenied):
            await speak_for(cluster, built)
        cluster.skipped += 1.1
        await speak_for(cluster, built)


async def test_a_proxy_whose_pod_is_gone_is_refused_within_ten_seconds(cluster: Cluster) -> None:
    cluster.stop_clock()
    async with authenticators(cluster) as built:
        await speak_for(cluster, built)
        del cluster.server.pods[0]
        cluster.skipped += 10.1
        with pytest.raises(ImpersonationDenied):
            await speak_for(cluster, built)


async def test_many_who_ask_the_same_at_once_ask_once(cluster: Cluster) -> None:
    cluster.server.faults[SHOP] = lambda honest: replace(honest, delay=0.3)
    async with authenticators(cluster) as built:
        callers = await asyncio.gather(*(speak_for(cluster, built) for _ in range(50)))

    assert {str(caller.spiffe_id) for caller in callers} == {CART}
    assert cluster.server.count(PROXIES) == 1
    assert cluster.server.count(SHOP) == 1


async def test_what_is_asked_at_one_time_is_bounded(cluster: Cluster) -> None:
    names = [f"cart-{number}" for number in range(12)]
    cluster.server.pods += [make_pod("shop", name, node="node-1") for name in names]
    under_way, most = 0, 0

    def slow(honest: Answer) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        cluster.server.released.wait(0.05)
        under_way -= 1
        return honest

    cluster.server.faults[SHOP] = slow
    async with authenticators(cluster, max_reviews=2) as built:
        await asyncio.gather(
            *(
                speak_for(cluster, built, f"spiffe://example.org/ns/shop/sa/{name}")
                for name in names
            )
        )

    assert most == 2
    assert cluster.server.count(SHOP) == len(names)


async def test_a_proxy_that_floods_keeps_none_of_another_node_from_being_answered(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_proxy, "MOST_AT_ONCE", 8)
    cluster.server.pods += [
        make_pod("istio-system", "ztunnel", node="node-2", name="ztunnel-2", uid="uid-2"),
        make_pod("shop", "cart", node="node-2"),
    ]
    other = cluster.issuer.jwt(
        cluster.issuer.kubernetes_claims("istio-system", "ztunnel", pod="ztunnel-2",
                                         pod_uid="uid-2", node="node-2")
    )  # fmt: skip
    async with authenticators(cluster, max_waiting=9) as built:
        flooding = await built.authenticate(ztunnel_token(cluster))
        honest = await built.authenticate(other)
        await built.speak_for(honest, CART, ACCOUNTS)
        await built.speak_for(flooding, CART, ACCOUNTS)
        cluster.stop_clock()
        cluster.server.faults[SHOP] = lambda given: replace(given, delay=1.0)
        flood = asyncio.gather(
            *(
                built.speak_for(flooding, f"spiffe://example.org/ns/shop/sa/a-{n}", ACCOUNTS)
                for n in range(40)
            ),
            return_exceptions=True,
        )
        await asyncio.sleep(0.2)
        assert await built.speak_for(honest, CART, ACCOUNTS)
        busy = [one for one in await flood if isinstance(one, VerifierUnavailable)]
        assert [one.reason for one in busy].count("VERIFIER_BUSY") == 32


async def test_who_finds_no_place_to_wait_is_told_to_come_back(cluster: Cluster) -> None:
    cluster.server.faults[SHOP] = lambda honest: replace(honest, delay=20)
    async with authenticators(cluster, max_waiting=3, timeout=2) as built:
        tries = await asyncio.gather(
            *(speak_for(cluster, built) for _ in range(8)), return_exceptions=True
        )

    assert {type(one) for one in tries} == {VerifierUnavailable}
    reasons = [one.reason for one in tries if isinstance(one, VerifierUnavailable)]
    assert reasons.count("VERIFIER_BUSY") == 5


async def test_whoever_makes_large_pods_keeps_nobody_elses_from_being_found(
    cluster: Cluster,
) -> None:
    # A pod has at most 1.5 MiB in etcd, and each "<" of it six bytes in an answer.
    pod = make_pod("shop", "large", node="node-1")
    pod["spec"]["containers"] = [{"env": [{"name": "A", "value": "<" * 1_200_000}]}]
    cluster.server.pods.append(pod)
    async with authenticators(cluster) as built:
        for _ in range(5):
            with pytest.raises(VerifierUnavailable, match="over 1048576 bytes"):
                await speak_for(cluster, built, "spiffe://example.org/ns/shop/sa/large")
        assert str((await speak_for(cluster, built)).spiffe_id) == CART


async def test_many_pods_of_one_account_make_no_answer_too_large(cluster: Cluster) -> None:
    for _ in range(20):
        pod = make_pod("shop", "many", node="node-1")
        pod["metadata"]["annotations"] = {"a": "x" * 200_000}
        cluster.server.pods.append(pod)
    async with authenticators(cluster) as built:
        assert await speak_for(cluster, built, "spiffe://example.org/ns/shop/sa/many")


async def test_only_what_is_needed_is_asked_for(cluster: Cluster) -> None:
    async with authenticators(cluster) as built:
        await speak_for(cluster, built)

    asked = [seen.path for seen in cluster.server.seen]
    assert [seen.method for seen in cluster.server.seen] == ["GET", "GET"]
    assert all(path.endswith("&limit=1") for path in asked)
    assert "metadata.name%3Dztunnel-1" in asked[0]
    assert "spec.nodeName%3Dnode-1%2Cspec.serviceAccountName%3Dcart" in asked[1]
