"""JWT-SVIDs are asked for once, kept for half of their life, and in bounded number."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from meshmint.agent.sockets.jwt_svids import JwtSvid, JwtSvids
from meshmint.agent.sockets.refusals import Refusal
from meshmint.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from support.agent_identities import Domain, TokenMaker

DOMAIN = Domain()
WEB, API = DOMAIN.identity(), DOMAIN.identity("api", "/api")


class Clock:
    """A clock that a test sets; it begins at the real time, which tokens are made by."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC).timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> TokenMaker:
    return TokenMaker(DOMAIN, lifetime=timedelta(seconds=300))


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_token_is_kept_for_half_of_its_life_and_no_longer(
    source: TokenMaker, clock: Clock
) -> None:
    tokens = JwtSvids(source, clock=clock)
    first = await tokens.get(WEB, ["a"])

    clock.now += 140
    assert await tokens.get(WEB, ["a"]) == first
    clock.now += 20
    assert await tokens.get(WEB, ["a"]) != first
    assert len(source.calls) == 2


async def test_clock_that_was_set_back_renews_the_token(source: TokenMaker, clock: Clock) -> None:
    tokens = JwtSvids(source, clock=clock)
    first = await tokens.get(WEB, ["a"])

    clock.now -= 3600

    assert await tokens.get(WEB, ["a"]) != first


async def test_every_identity_and_every_set_of_audiences_has_its_own(source: TokenMaker) -> None:
    tokens = JwtSvids(source)

    found = {
        (await tokens.get(identity, audiences)).token
        for identity in (WEB, API)
        for audiences in (["a"], ["b"], ["a", "b"], ["b", "a", "b"])
    }

    assert len(found) == 6
    assert ("web", ("a", "b")) in source.calls


async def test_who_asks_at_once_waits_for_one_call_and_one_who_hangs_up_does_not_end_it(
    source: TokenMaker,
) -> None:
    tokens = JwtSvids(source)
    source.gate.clear()
    waiting = [asyncio.create_task(tokens.get(WEB, ["a"])) for _ in range(50)]
    await source.begun.get()

    waiting[0].cancel()
    await asyncio.sleep(0)
    source.gate.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)

    assert isinstance(found[0], asyncio.CancelledError)
    assert len({one.token for one in found[1:]}) == 1  # type: ignore[union-attr]
    assert len(source.calls) == 1


async def test_failed_call_is_not_remembered_and_nobody_left_waiting_makes_no_noise(
    source: TokenMaker, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = JwtSvids(source)
    source.gate.clear()
    source.error = Unavailable("away")
    waiting = asyncio.create_task(tokens.get(WEB, ["a"]))
    await source.begun.get()
    waiting.cancel()
    source.gate.set()
    with pytest.raises(Refusal):
        await tokens.get(WEB, ["a"])

    source.error = None

    assert (await tokens.get(WEB, ["a"])).spiffe_id == WEB.spiffe_id
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    "error", [Unavailable("away"), ResourceExhausted("busy"), DeadlineExceeded("slow")]
)
async def test_kept_token_serves_on_while_the_service_is_away_until_it_is_of_no_use(
    error: Exception, source: TokenMaker, clock: Clock
) -> None:
    tokens = JwtSvids(source, clock=clock)
    first = await tokens.get(WEB, ["a"])
    source.error = error

    clock.now += 260
    assert await tokens.get(WEB, ["a"]) == first
    clock.now += 20

    with pytest.raises(Refusal) as refused:
        await tokens.get(WEB, ["a"])
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


async def test_kept_token_is_not_served_once_its_role_gives_none(
    source: TokenMaker, clock: Clock
) -> None:
    tokens = JwtSvids(source, clock=clock)
    await tokens.get(WEB, ["a"])
    source.error = PermissionDenied("no more")
    clock.now += 160

    with pytest.raises(Refusal) as refused:
        await tokens.get(WEB, ["a"])

    assert refused.value.code is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidArgument("bad"), grpc.StatusCode.INVALID_ARGUMENT),
        (Unimplemented("old"), grpc.StatusCode.UNIMPLEMENTED),
        (FailedPrecondition("no key"), grpc.StatusCode.UNAVAILABLE),
    ],
)
async def test_errors_are_told_by_code(
    error: Exception, code: grpc.StatusCode, source: TokenMaker
) -> None:
    source.error = error

    with pytest.raises(Refusal, match=str(error)) as refused:
        await JwtSvids(source).get(WEB, ["a"])

    assert refused.value.code is code


async def test_as_many_are_kept_as_may_be_and_the_longest_unused_go(source: TokenMaker) -> None:
    tokens = JwtSvids(source, max_kept=2)
    a = await tokens.get(WEB, ["a"])
    await tokens.get(WEB, ["b"])
    assert await tokens.get(WEB, ["a"]) == a
    await tokens.get(WEB, ["c"])

    assert await tokens.get(WEB, ["a"]) == a
    calls = len(source.calls)
    await tokens.get(WEB, ["b"])
    assert len(source.calls) == calls + 1


async def test_no_more_calls_at_once_than_allowed(source: TokenMaker) -> None:
    tokens = JwtSvids(source, max_calls=2)
    source.gate.clear()
    waiting = [asyncio.create_task(tokens.get(WEB, [str(n)])) for n in range(2)]
    for _ in waiting:
        await source.begun.get()

    with pytest.raises(Refusal) as refused:
        await tokens.get(WEB, ["one more"])

    assert refused.value.code is grpc.StatusCode.UNAVAILABLE
    source.gate.set()
    await asyncio.gather(*waiting)
    assert await tokens.get(WEB, ["one more"])


async def test_token_for_somebody_else_is_refused(source: TokenMaker) -> None:
    async def another(identity: Any, audiences: Any) -> JwtSvid:
        return JwtSvid("spiffe://example.org/else", "x.y.z", datetime.now(UTC))

    source.fetch_jwt_svid = another  # type: ignore[method-assign]

    with pytest.raises(Refusal, match="not for spiffe"):
        await JwtSvids(source).get(WEB, ["a"])


async def test_those_who_wait_when_the_agent_stops_are_told_so(source: TokenMaker) -> None:
    tokens = JwtSvids(source)
    source.gate.clear()
    waiting = asyncio.create_task(tokens.get(WEB, ["a"]))
    await source.begun.get()

    await tokens.close()

    with pytest.raises(Refusal, match="stopping") as refused:
        await waiting
    assert refused.value.code is grpc.StatusCode.UNAVAILABLE


def test_token_is_in_no_representation() -> None:
    assert "secret" not in repr(JwtSvid("spiffe://example.org/web", "secret", datetime.now(UTC)))
