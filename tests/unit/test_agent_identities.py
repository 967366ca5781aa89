"""The agent's picture: who is woken by what, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from meshmint.agent.identities import Identities, Identity, Picture
from support.agent_identities import Domain, picture

DOMAIN = Domain()
SECOND = Domain("second.example")
BUNDLE = DOMAIN.bundle()
WEB, RENEWED, API = DOMAIN.identity(), DOMAIN.identity(), DOMAIN.identity("api", "/ns/shop/sa/api")


def of(*identities: Identity) -> Picture:
    return picture(*identities, bundles=[BUNDLE])


async def passing(seconds: float = 0.05) -> None:
    """Long enough for whoever was woken, and for what is gathered for a tenth of that."""
    await asyncio.sleep(seconds)


async def test_a_follower_gets_what_is_there_and_then_the_newest() -> None:
    identities = Identities(gather_seconds=0.005)
    identities.publish(of(WEB))
    following: AsyncIterator[Picture] = identities.follow()
    assert (await anext(following)).identities == (WEB,)
    identities.publish(of(WEB, API))
    identities.publish(of(RENEWED, API))
    assert (await anext(following)).identities == (RENEWED, API)


async def test_whoever_watches_a_part_is_woken_for_that_alone() -> None:
    identities = Identities(gather_seconds=0.005)
    with identities.watch(lambda one: (one.by_name.get("api"), one.bundles)) as news:
        identities.publish(of(WEB))
        assert news.is_set()
        news.clear()
        await passing()
        identities.publish(of(RENEWED))
        await passing()
        assert not news.is_set()
        identities.publish(of(RENEWED, API))
        assert news.is_set()
        news.clear()
        await passing()
        identities.publish(picture(RENEWED, API, bundles=[DOMAIN.bundle(sequence=2)]))
        await passing()
        assert not news.is_set()
        identities.publish(picture(RENEWED, API, bundles=[DOMAIN.bundle(SECOND.root)]))
        assert news.is_set()


async def test_what_comes_together_wakes_readers_twice_at_most() -> None:
    identities = Identities(gather_seconds=0.02)
    seen: list[Picture] = []

    async def follow() -> None:
        async for one in identities.follow():
            seen.append(one)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    for _ in range(100):
        identities.publish(of(WEB))
        identities.publish(of(RENEWED))
        await asyncio.sleep(0)
    last = of(RENEWED, API)
    identities.publish(last)
    while not seen or seen[-1] != last:  # noqa: ASYNC110, nobody tells
        await asyncio.sleep(0.01)
    # At once, and what was gathered; a machine that is slow may gather it in several parts.
    assert len(seen) < 20
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_picture_is_made_when_somebody_looks_at_it_and_once() -> None:
    identities = Identities(gather_seconds=10.0)
    made: list[int] = []

    def make(number: int, *held: Identity) -> Picture:
        made.append(number)
        return of(*held)

    with identities.watch() as news:
        identities.announce(lambda: make(0, WEB))
        assert news.is_set()
        for number in range(1, 100):
            identities.announce(lambda number=number: make(number, WEB, API))
        assert made == [0]
        assert identities.picture == of(WEB, API)
        assert identities.picture is identities.picture
        assert made == [0, 99]


async def test_the_same_again_is_no_news() -> None:
    identities = Identities(gather_seconds=0.005)
    identities.publish(of(WEB))
    before = identities.picture
    with identities.watch() as news:
        news.clear()
        identities.publish(of(WEB))
        await passing()
        assert not news.is_set()
        assert identities.picture is before


async def test_who_has_left_is_not_told_any_more() -> None:
    identities = Identities(gather_seconds=0.005)
    with identities.watch() as news:
        pass
    identities.publish(of(WEB))
    await passing()
    assert not news.is_set()
