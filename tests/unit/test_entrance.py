"""The entrance of the RPCs, which holds them while the listener closes."""

from __future__ import annotations

import asyncio
import itertools

from meshmint_server.grpc_api.entrance import Entrance


async def test_what_comes_in_while_the_listener_closes_waits_and_is_let_go() -> None:
    entrance = Entrance()
    await entrance.enter()
    async with entrance.held():
        arrivals = [asyncio.create_task(entrance.enter()) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert not any(arrival.done() for arrival in arrivals)
    await asyncio.gather(*arrivals)
    await entrance.enter()


async def test_the_listener_closes_only_once_nothing_more_comes_in() -> None:
    entrance = Entrance()
    waiting = 40
    arrivals = []

    async def bring_one_after_the_other() -> None:
        for _ in range(waiting):
            arrivals.append(asyncio.create_task(entrance.enter()))
            await asyncio.sleep(0)

    bringing = asyncio.create_task(bring_one_after_the_other())
    async with entrance.held():
        assert bringing.done()
        assert not any(arrival.done() for arrival in arrivals)
    await asyncio.gather(*arrivals)
    assert len(arrivals) == waiting


async def test_arrivals_without_end_do_not_keep_the_listener_open() -> None:
    entrance = Entrance()
    arrivals = []

    async def bring() -> None:
        for _ in itertools.count():
            arrivals.append(asyncio.create_task(entrance.enter()))
            await asyncio.sleep(0)

    bringing = asyncio.create_task(bring())
    async with entrance.held():
        assert not bringing.done()
    bringing.cancel()
    await asyncio.gather(*arrivals)
