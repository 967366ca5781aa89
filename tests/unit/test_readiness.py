"""Readiness follows what happens, and does not wait for the next look at the clock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta

import pytest
from meshmint_server.authority import Issuer
from meshmint_server.errors import KeyUnavailable
from meshmint_server.issuance import ReadinessProbe
from support.software_key import SoftwareKey, software_issuer

NEVER = 3600.0


class OneIssuer:
    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer

    def active(self) -> Issuer:
        return self.issuer


class AnsweringStore:
    async def prove_writing(self) -> None: ...


@pytest.fixture
def key() -> SoftwareKey:
    return SoftwareKey()


@pytest.fixture
async def probe(key: SoftwareKey) -> AsyncIterator[ReadinessProbe]:
    """One that is followed, and was ready."""
    issuers = OneIssuer(software_issuer(key, timedelta(days=1)))
    probe = ReadinessProbe(issuers, AnsweringStore())  # type: ignore[arg-type]
    await probe.probe()
    assert probe.current.is_ready
    following = asyncio.create_task(probe.follow(NEVER))
    yield probe
    following.cancel()
    with suppress(asyncio.CancelledError):
        await following


async def becomes(probe: ReadinessProbe, is_ready: bool) -> None:
    async with asyncio.timeout(30):
        while probe.current.is_ready != is_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_doubt_is_looked_into_at_once_and_so_is_the_end_of_trouble(
    probe: ReadinessProbe, key: SoftwareKey
) -> None:
    key.fault = KeyUnavailable("the token is gone")
    probe.doubt()
    await becomes(probe, False)
    key.fault = None
    await becomes(probe, True)


async def test_doubt_without_reason_leaves_it_ready_and_costs_few_signatures(
    probe: ReadinessProbe, key: SoftwareKey
) -> None:
    changes: list[bool] = []
    probe.on_change(lambda outcome: changes.append(outcome.is_ready))
    made = key.signatures
    for _ in range(200):
        probe.doubt()
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        while key.signatures == made:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert key.signatures == made + 1
    assert changes == [True]


async def test_a_worker_that_drains_never_says_ready_again(probe: ReadinessProbe) -> None:
    changes: list[str] = []
    probe.on_change(lambda outcome: changes.append(outcome.reason))
    probe.stop("draining")
    await probe.probe()
    assert changes == ["ready", "draining"]
    assert not probe.current.is_ready
