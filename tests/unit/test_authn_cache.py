"""Verified tokens are remembered, and for no longer than they hold."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from meshmint_server.authn import Authenticators, Clock, JwtSettings, Refusal
from meshmint_server.errors import Unauthenticated
from meshmint_server.spiffe import TrustDomain
from support.identity_provider import TokenIssuer


@dataclass
class Hands:
    """A clock that a test turns by hand."""

    skipped: float = 0.0
    clock: Clock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = Clock(
            now=lambda: time.time() + self.skipped,
            monotonic=lambda: time.monotonic() + self.skipped,
        )


@pytest.fixture
def issuer(tmp_path: Path) -> TokenIssuer:
    return TokenIssuer(tmp_path)


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def checks() -> list[tuple[str, str]]:
    return []


def build(
    issuer: TokenIssuer,
    checks: list[tuple[str, str]],
    hands: Hands,
    **settings: Any,
) -> Authenticators:
    return Authenticators.build(
        [
            JwtSettings(
                name="corp",
                issuer=issuer.issuer,
                audiences=("meshmint",),
                jwks_file=issuer.jwks_file,
                **settings,
            )
        ],
        TrustDomain("example.org"),
        counter=lambda name, outcome: lambda: checks.append((name, outcome)),
        clock=hands.clock,
    )


async def test_the_second_check_is_remembered(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands)
    token = issuer.jwt()

    assert await authenticators.authenticate(token) is await authenticators.authenticate(token)
    assert checks == [("corp", "verified"), ("corp", "remembered")]


async def test_a_remembered_token_still_expires(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands)
    token = issuer.jwt(ttl=600)
    await authenticators.authenticate(token)

    hands.skipped = 615
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)

    assert caught.value.reason == Refusal.CREDENTIAL_EXPIRED
    assert checks[-1] == ("corp", "CREDENTIAL_EXPIRED")


async def test_the_authenticators_limit_ends_remembering(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands, cache_for=60)
    token = issuer.jwt()
    for skipped in (0, 50, 70):
        hands.skipped = skipped
        await authenticators.authenticate(token)

    assert [outcome for _, outcome in checks] == ["verified", "remembered", "verified"]


async def test_a_limit_of_zero_remembers_nothing(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands, cache_for=0)
    token = issuer.jwt()
    await authenticators.authenticate(token)
    await authenticators.authenticate(token)

    assert [outcome for _, outcome in checks] == ["verified", "verified"]


async def test_a_withdrawn_key_ends_remembering(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands)
    token = issuer.jwt()
    await authenticators.authenticate(token)

    issuer.rotate()
    hands.skipped = 0.2
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(token)

    assert caught.value.reason == Refusal.SIGNATURE_INVALID


async def test_the_least_recently_used_token_is_forgotten_first(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands, max_remembered=2)
    first, second, third = (issuer.jwt({"sub": name}) for name in ("one", "two", "three"))
    for token in (first, second, first, third, first, second):
        await authenticators.authenticate(token)

    assert [outcome for _, outcome in checks] == [
        "verified",
        "verified",
        "remembered",
        "verified",
        "remembered",
        "verified",
    ]


async def test_no_flood_of_one_issuers_tokens_pushes_out_anothers(tmp_path: Path) -> None:
    issuers = [TokenIssuer(tmp_path / name, issuer=name) for name in ("cluster", "public-ci")]
    authenticators = Authenticators.build(
        [
            JwtSettings(
                name=issuer.issuer,
                issuer=issuer.issuer,
                audiences=("meshmint",),
                jwks_file=issuer.jwks_file,
                max_remembered=3,
            )
            for issuer in issuers
        ],
        TrustDomain("example.org"),
    )
    token = issuers[0].jwt()
    caller = await authenticators.authenticate(token)
    for number in range(10):
        await authenticators.authenticate(issuers[1].jwt({"sub": f"anybody-{number}"}))

    assert await authenticators.authenticate(token) is caller


async def test_a_remembered_token_waits_for_nothing(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands)
    token = issuer.jwt()
    caller = await authenticators.authenticate(token)

    walk = authenticators.authenticate(token, within=pytest.fail)
    with pytest.raises(StopIteration) as ended:
        walk.send(None)  # No event loop is asked for anything.
    assert ended.value.value is caller


async def test_a_token_that_must_be_checked_is_checked_within_the_limit(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands)
    entered = []

    @asynccontextmanager
    async def limit() -> AsyncIterator[None]:
        entered.append(True)
        yield

    await authenticators.authenticate(issuer.jwt(), within=limit)
    assert entered == [True]


async def test_a_counter_is_asked_for_once_for_each_outcome(issuer: TokenIssuer) -> None:
    asked: list[tuple[str, str]] = []

    def counter(name: str, outcome: str) -> Callable[[], object]:
        asked.append((name, outcome))
        return lambda: None

    settings = JwtSettings(
        name="corp", issuer=issuer.issuer, audiences=("meshmint",), jwks_file=issuer.jwks_file
    )
    authenticators = Authenticators.build([settings], TrustDomain("example.org"), counter=counter)
    for token in [issuer.jwt()] * 3 + [issuer.jwt({"sub": "other"})]:
        await authenticators.authenticate(token)
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await authenticators.authenticate(None)

    assert sorted(asked) == [
        ("", "CREDENTIAL_MISSING"),
        ("corp", "remembered"),
        ("corp", "verified"),
    ]


async def test_every_outcome_is_reported_with_its_authenticator(
    issuer: TokenIssuer, checks: list[tuple[str, str]], hands: Hands
) -> None:
    authenticators = build(issuer, checks, hands)
    tokens = [None, "x", issuer.jwt({"iss": "https://x"}), issuer.jwt({"aud": "other"})]
    for token in tokens:
        with pytest.raises(Unauthenticated):
            await authenticators.authenticate(token)

    assert checks == [
        ("", "CREDENTIAL_MISSING"),
        ("", "CREDENTIAL_MALFORMED"),
        ("", "ISSUER_UNKNOWN"),
        ("corp", "AUDIENCE_MISMATCH"),
    ]


async def test_several_issuers_stand_side_by_side(tmp_path: Path) -> None:
    issuers = [
        TokenIssuer(tmp_path / name, issuer=f"https://{name}.test") for name in ("one", "two")
    ]
    authenticators = Authenticators.build(
        [
            JwtSettings(
                name=issuer.issuer.removeprefix("https://"),
                issuer=issuer.issuer,
                audiences=("meshmint",),
                jwks_file=issuer.jwks_file,
            )
            for issuer in issuers
        ],
        TrustDomain("example.org"),
    )

    for issuer, name in zip(issuers, ("one.test", "two.test"), strict=True):
        assert (await authenticators.authenticate(issuer.jwt())).authenticator == name
    # One issuer's key does not vouch for the other's tokens.
    with pytest.raises(Unauthenticated) as caught:
        await authenticators.authenticate(issuers[0].jwt({"iss": issuers[1].issuer}))
    assert caught.value.reason == Refusal.SIGNATURE_INVALID
