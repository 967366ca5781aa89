"""The leadership in both databases: one at a time, and free again when its holder dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

import pytest
from meshmint_server.store import Store

HOLDER = """
import asyncio, sys
from meshmint_server.store import Store

async def main():
    leadership = Store.open(sys.argv[1]).leadership("upkeep")
    assert await leadership.hold()
    print("held", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def test_one_of_two_claims_holds_and_the_other_after_its_release(store_url: str) -> None:
    store = Store.open(store_url)
    first, second = store.leadership("upkeep"), store.leadership("upkeep")
    try:
        assert await first.hold()
        assert await first.hold()
        assert not await second.hold()
        await first.release()
        async with asyncio.timeout(20):
            # PostgreSQL may notice a moment later.
            while not await second.hold():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not await first.hold()
    finally:
        await first.release()
        await second.release()
        await store.close()


async def test_claims_in_different_matters_do_not_meet(store_url: str) -> None:
    store = Store.open(store_url)
    first, second = store.leadership("upkeep"), store.leadership("other")
    try:
        assert await first.hold()
        assert await second.hold()
    finally:
        await first.release()
        await second.release()
        await store.close()


async def test_the_leadership_of_a_killed_process_is_free(store_url: str) -> None:
    store = Store.open(store_url)
    claim = store.leadership("upkeep")
    with subprocess.Popen(  # noqa: ASYNC220 - a moment, in a test
        [sys.executable, "-c", HOLDER, store_url], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert not await claim.hold()
        os.kill(holder.pid, signal.SIGKILL)
    try:
        for _ in range(200):
            if await claim.hold():
                break
        else:
            pytest.fail("the leadership of a killed process was never free")
    finally:
        await claim.release()
        await store.close()
