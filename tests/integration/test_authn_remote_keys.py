"""Keys fetched over real HTTPS: rotation, outages, and servers that misbehave."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from meshmint_server.authn import Authenticators, Clock, JwtSettings, KubernetesSettings, Refusal
from meshmint_server.errors import Unauthenticated, VerifierUnavailable
from meshmint_server.policy.caller import Caller
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import Answer, IdentityServer, TestCa, TokenIssuer, replace_file

JWKS = IdentityServer.JWKS
DISCOVERY = IdentityServer.DISCOVERY
TRUST_DOMAIN = TrustDomain("example.org")


@dataclass
class World:
    """An issuer, its server, and the CA that vouches for the server."""

    issuer: TokenIssuer
    ca: TestCa
    server: IdentityServer
    skipped: float = 0.0

    @property
    def jwt(self) -> dict[str, Any]:
        return {
            "name": "corp",
            "issuer": self.issuer.issuer,
            "audiences": ("meshmint",),
            "ca_file": self.ca.file,
        }

    @asynccontextmanager
    async def authenticators(
        self, *settings: JwtSettings | KubernetesSettings
    ) -> AsyncIterator[Authenticators]:
        clock = Clock(monotonic=lambda: time.monotonic() + self.skipped)
        built = Authenticators.build(settings, TRUST_DOMAIN, clock=clock)
        try:
            yield built
        finally:
            await built.close()

    def by_jwks_url(self, **changes: Any) -> JwtSettings:
        return JwtSettings(**{**self.jwt, "jwks_url": self.server.url + JWKS, **changes})

    def by_discovery(self, **changes: Any) -> JwtSettings:
        return JwtSettings(**{**self.jwt, "discovery_url": self.server.url, **changes})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    ca = TestCa(tmp_path)
    issuer = TokenIssuer(tmp_path, issuer="https://id.test")
    with IdentityServer(issuer, ca) as server:
        yield World(issuer, ca, server)


async def refusal(authenticators: Authenticators, token: str) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)
    return caught.value.reason


async def outage(authenticators: Authenticators, token: str) -> VerifierUnavailable:
    with pytest.raises(VerifierUnavailable) as caught:
        await authenticators.authenticate(token)
    assert token not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    assert caught.value.retry_after is not None
    return caught.value


async def accepted(authenticators: Authenticators, token: str) -> Caller:
    return await authenticators.authenticate(token)


async def accepted_until_refused(authenticators: Authenticators, token: str) -> None:
    async with asyncio.timeout(5):
        while True:
            await authenticators.authenticate(token)
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - it is a server's thread that is waited for
            await asyncio.sleep(0.01)


async def test_keys_are_fetched_once_for_many_tokens_at_once(world: World) -> None:
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        tokens = [world.issuer.jwt({"sub": f"s{number}"}) for number in range(20)]

        callers = await asyncio.gather(*(accepted(authenticators, token) for token in tokens))

    assert len({caller.subject for caller in callers}) == 20
    assert world.server.count(JWKS) == 1


async def test_discovery_finds_the_keys(world: World) -> None:
    for url in ("", "/", DISCOVERY):
        settings = world.by_discovery(discovery_url=world.server.url + url)
        async with world.authenticators(settings) as authenticators:
            assert (await accepted(authenticators, world.issuer.jwt())).subject == "someone"


async def test_discovery_of_another_issuer_is_not_believed(world: World) -> None:
    world.server.faults[DISCOVERY] = Answer(
        body={"issuer": "https://other.test", "jwks_uri": world.server.url + JWKS}
    )
    async with world.authenticators(world.by_discovery()) as authenticators:
        await outage(authenticators, world.issuer.jwt())
    assert world.server.count(JWKS) == 0


@pytest.mark.parametrize(
    "jwks_uri",
    [
        "http://127.0.0.1/jwks",
        "https://127.0.0.1:99999/jwks",
        "https://" + "a" * 70 + ".test/jwks",
        "https://127.0.0.1:1/\n",
        "https://[::1/jwks",
        "file:///etc/passwd",
        7,
        None,
    ],
)
async def test_discovery_naming_no_https_keys_is_not_followed(
    world: World, jwks_uri: object
) -> None:
    world.server.faults[DISCOVERY] = Answer(
        body={"issuer": world.issuer.issuer, "jwks_uri": jwks_uri}
    )
    async with world.authenticators(world.by_discovery()) as authenticators:
        await outage(authenticators, world.issuer.jwt())


async def test_a_cluster_api_server_is_discovered_with_our_credential(
    world: World, tmp_path: Path
) -> None:
    credential = tmp_path / "token"
    credential.write_text("our-own-token\n")
    world.server.faults[DISCOVERY] = Answer(
        body={"issuer": world.issuer.issuer, "jwks_uri": "https://10.0.0.1:6443/openid/v1/jwks"}
    )
    settings = KubernetesSettings(
        name="cluster",
        issuer=world.issuer.issuer,
        audiences=("meshmint",),
        api_server=world.server.url,
        ca_file=world.ca.file,
        reviewer_token_file=credential,
    )
    async with world.authenticators(settings) as authenticators:
        caller = await accepted(authenticators, world.issuer.kubernetes_token())

    assert str(caller.spiffe_id) == "spiffe://example.org/ns/shop/sa/cart"
    assert {seen.authorization for seen in world.server.seen} == {"Bearer our-own-token"}
    assert [seen.path for seen in world.server.seen] == [DISCOVERY, IdentityServer.CLUSTER_JWKS]


async def test_a_cluster_jwks_url_is_not_shown_our_credential(world: World, tmp_path: Path) -> None:
    credential = tmp_path / "token"
    credential.write_text("our-own-token\n")
    settings = KubernetesSettings(
        name="cluster",
        issuer=world.issuer.issuer,
        audiences=("meshmint",),
        jwks_url=world.server.url + JWKS,
        jwks_ca_file=world.ca.file,
        reviewer_token_file=credential,
    )
    async with world.authenticators(settings) as authenticators:
        await accepted(authenticators, world.issuer.kubernetes_token())

    assert [seen.authorization for seen in world.server.seen] == [None]


async def test_a_new_key_is_found_when_a_token_names_it(world: World) -> None:
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        old = world.issuer.jwt()
        await accepted(authenticators, old)

        world.issuer.rotate(keep_old=True)

        await accepted(authenticators, world.issuer.jwt())
        await accepted(authenticators, old)
    assert world.server.count(JWKS) == 2


async def test_a_new_key_is_found_where_keys_have_no_ids(world: World) -> None:
    def nameless(honest: Answer) -> Answer:
        keys = [{**jwk, "kid": None} for jwk in honest.body["keys"]]
        return Answer(body={"keys": keys})

    world.server.faults[JWKS] = nameless
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        await accepted(authenticators, world.issuer.jwt())
        world.issuer.rotate()
        forged = world.issuer.jwt()[:-8] + "AAAAAAAA"

        await accepted(authenticators, world.issuer.jwt())
        for _ in range(3):
            assert await refusal(authenticators, forged) == Refusal.SIGNATURE_INVALID
    assert world.server.count(JWKS) == 2


async def test_unknown_kids_cause_one_fetch_per_cool_down(world: World) -> None:
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        await accepted(authenticators, world.issuer.jwt())
        made = {"iat": int(time.time()) - 60}
        unknown = [world.issuer.jwt(made, headers={"kid": f"unknown-{n}"}) for n in range(20)]

        for token in unknown[:10]:
            assert await refusal(authenticators, token) == Refusal.SIGNATURE_INVALID
        await asyncio.gather(*(refusal(authenticators, token) for token in unknown[10:]))
        assert world.server.count(JWKS) == 2

        world.skipped += 31
        await asyncio.gather(*(refusal(authenticators, token) for token in unknown))
        assert world.server.count(JWKS) == 3


async def test_a_second_rotation_within_the_cool_down_is_no_fault_of_its_tokens(
    world: World,
) -> None:
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        await accepted(authenticators, world.issuer.jwt())
        world.issuer.rotate()
        await accepted(authenticators, world.issuer.jwt())
        world.issuer.rotate()
        fresh = [world.issuer.jwt({"sub": f"s{number}"}) for number in range(100)]

        errors = await asyncio.gather(*(outage(authenticators, token) for token in fresh))
        assert world.server.count(JWKS) == 2

        world.skipped += max(error.retry_after or 0 for error in errors)
        await asyncio.gather(*(accepted(authenticators, token) for token in fresh))
    assert world.server.count(JWKS) == 3


async def test_keys_asked_for_before_a_token_was_made_do_not_refuse_it(world: World) -> None:
    held = threading.Event()

    def slow(honest: Answer) -> Answer:
        held.wait(20)
        return honest  # What was published when it was asked for.

    async with world.authenticators(world.by_jwks_url()) as authenticators:
        await accepted(authenticators, world.issuer.jwt())
        world.server.faults[JWKS] = slow
        unknown = world.issuer.jwt(headers={"kid": "unknown"})
        first = asyncio.create_task(refusal(authenticators, unknown))
        await until(lambda: world.server.count(JWKS) == 2)
        world.issuer.rotate()
        joining = asyncio.create_task(outage(authenticators, world.issuer.jwt()))
        await asyncio.sleep(0)
        held.set()

        assert await first == Refusal.SIGNATURE_INVALID
        await joining


async def test_the_same_keys_in_another_order_void_nothing(world: World) -> None:
    world.issuer.rotate(keep_old=True)
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        token = world.issuer.jwt()
        caller = await accepted(authenticators, token)

        for reverse in (True, False):
            world.server.faults[JWKS] = lambda honest, reverse=reverse: Answer(
                body={"keys": sorted(honest.body["keys"], key=lambda k: k["kid"], reverse=reverse)}
            )
            world.skipped += 301
            before = world.server.count(JWKS)
            assert await accepted(authenticators, token) is caller  # Starts a refresh.
            await until(lambda before=before: world.server.count(JWKS) > before)
            # It waits for the refresh if that is still under way.
            await refusal(authenticators, world.issuer.jwt({"iat": 0}, headers={"kid": "none"}))

        assert await accepted(authenticators, token) is caller


async def test_a_withdrawn_key_is_dropped_at_the_next_refresh(world: World) -> None:
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        token = world.issuer.jwt()
        await accepted(authenticators, token)
        world.issuer.rotate()

        world.skipped += 301
        await accepted(authenticators, token)  # Served while the refresh is under way.
        await until(lambda: world.server.count(JWKS) == 2)

        with pytest.raises(Unauthenticated) as caught:
            await accepted_until_refused(authenticators, token)
        assert caught.value.reason == Refusal.SIGNATURE_INVALID


async def test_stale_keys_serve_through_an_outage_up_to_the_limit(world: World) -> None:
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        token = world.issuer.jwt({"exp": int(time.time()) + 10**6})
        await accepted(authenticators, token)
        world.server.close()

        world.skipped += 86_000
        await accepted(authenticators, token)
        await accepted(authenticators, world.issuer.jwt({"sub": "never seen before"}))

        world.skipped += 1_000
        await outage(authenticators, token)


async def test_an_unknown_kid_in_an_outage_is_no_fault_of_the_token(world: World) -> None:
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        await accepted(authenticators, world.issuer.jwt())
        world.server.faults[JWKS] = Answer(503)
        world.issuer.rotate()
        token = world.issuer.jwt()

        await outage(authenticators, token)
        await outage(authenticators, token)

        del world.server.faults[JWKS]
        world.skipped += 2
        await accepted(authenticators, token)


async def test_a_server_down_from_the_start_is_asked_with_back_off(world: World) -> None:
    world.server.faults[JWKS] = Answer(500)
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        token = world.issuer.jwt()
        for _ in range(5):
            await outage(authenticators, token)
        assert world.server.count(JWKS) == 1

        del world.server.faults[JWKS]
        world.skipped += 1.1
        await accepted(authenticators, token)


@pytest.mark.parametrize(
    "changes",
    [
        {"status": 500},
        {"status": 429, "headers": {"retry-after": "7"}},
        {"status": 404},
        {"status": 403},
        {"status": 203},
        {"status": 302, "headers": {"location": IdentityServer.CLUSTER_JWKS}},
        {"body": b"<html>"},
        {"body": b'{"keys": "none"}'},
        {"body": b'{"keys": [], "keys": []}'},
        {"padding": 1_100_000},
        {"headers": {"content-encoding": "gzip"}},
        {"delay": 20},
    ],
    ids=[
        "500",
        "429",
        "404",
        "403",
        "203",
        "redirect",
        "html",
        "no-keys",
        "duplicate-names",
        "too-big",
        "compressed",
        "hangs",
    ],
)
async def test_a_failing_key_server_is_unavailable_not_unauthenticated(
    world: World, changes: dict[str, Any]
) -> None:
    # The keys are right each time, so that only what is changed can be at fault.
    changed = dict(changes)
    body = {**world.issuer.jwks(), "padding": "x" * changed.pop("padding", 0)}
    world.server.faults[JWKS] = Answer(**{"body": body, **changed})
    timeout = 0.3 if "delay" in changes else 10
    async with world.authenticators(world.by_jwks_url(timeout=timeout)) as authenticators:
        await outage(authenticators, world.issuer.jwt())
    assert world.server.count(IdentityServer.CLUSTER_JWKS) == 0


async def test_retry_after_of_the_server_is_passed_on_and_heeded(world: World) -> None:
    world.server.faults[JWKS] = Answer(429, headers={"retry-after": "7"})
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        assert (await outage(authenticators, world.issuer.jwt())).retry_after == 7
        world.skipped += 5
        assert 0 < ((await outage(authenticators, world.issuer.jwt())).retry_after or 0) <= 2
        assert world.server.count(JWKS) == 1

        world.server.faults.clear()
        world.skipped += 2
        await accepted(authenticators, world.issuer.jwt())


async def test_a_caller_that_gives_up_takes_no_other_down_with_it(world: World) -> None:
    world.server.faults[JWKS] = lambda honest: Answer(honest.status, honest.body, delay=0.2)
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        impatient = asyncio.create_task(authenticators.authenticate(world.issuer.jwt()))
        patient = asyncio.create_task(authenticators.authenticate(world.issuer.jwt()))
        await until(lambda: world.server.count(JWKS) == 1)
        impatient.cancel()

        assert (await patient).subject == "someone"
    assert world.server.count(JWKS) == 1


async def test_a_server_of_a_strange_ca_is_not_trusted(world: World, tmp_path: Path) -> None:
    stranger = TestCa(tmp_path, "stranger")
    async with world.authenticators(world.by_jwks_url(ca_file=stranger.file)) as authenticators:
        await outage(authenticators, world.issuer.jwt())
    assert world.server.seen == []


async def test_the_systems_roots_do_not_know_the_test_ca(world: World) -> None:
    async with world.authenticators(world.by_jwks_url(ca_file=None)) as authenticators:
        await outage(authenticators, world.issuer.jwt())
    assert world.server.seen == []


async def test_a_certificate_for_another_name_is_not_trusted(world: World) -> None:
    world.server.use_ca(world.ca, address="127.0.0.2", names=())
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        await outage(authenticators, world.issuer.jwt())
    assert world.server.seen == []


async def test_a_replaced_ca_file_counts_at_the_next_fetch(world: World, tmp_path: Path) -> None:
    new_ca = TestCa(tmp_path, "new CA")
    watched = tmp_path / "watched-ca.pem"
    watched.write_bytes(world.ca.pem)
    async with world.authenticators(world.by_jwks_url(ca_file=watched)) as authenticators:
        await accepted(authenticators, world.issuer.jwt())
        world.issuer.rotate()
        world.server.use_ca(new_ca)
        replace_file(watched, new_ca.pem)

        await accepted(authenticators, world.issuer.jwt())


async def test_proxies_of_the_environment_are_not_used(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    async with world.authenticators(world.by_jwks_url()) as authenticators:
        await accepted(authenticators, world.issuer.jwt())


async def test_closing_ends_a_fetch_that_is_under_way(world: World) -> None:
    world.server.faults[JWKS] = Answer(delay=20)
    async with world.authenticators(world.by_jwks_url(timeout=30)) as authenticators:
        waiting = asyncio.create_task(authenticators.authenticate(world.issuer.jwt()))
        await until(lambda: world.server.count(JWKS) == 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting
