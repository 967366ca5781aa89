"""Looking replies up, many in one question: whatever becomes of one, the next is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from meshmint_server.errors import StoreUnavailable
from meshmint_server.store.replies import ReplyLookup


async def test_a_look_up_that_meets_a_bug_leaves_nobody_waiting() -> None:
    asked: list[Sequence[bytes]] = []
    go_on = asyncio.Event()

    async def fetch(tags: Sequence[bytes]) -> Sequence[bytes]:
        asked.append(tags)
        if len(asked) == 1:
            await go_on.wait()
            raise ZeroDivisionError
        return tags

    bugs: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    lookup = ReplyLookup(fetch)
    first = asyncio.create_task(lookup.is_taken(b"first"))
    await asyncio.sleep(0.01)
    behind = asyncio.create_task(lookup.is_taken(b"behind"))
    await asyncio.sleep(0.01)
    go_on.set()
    with pytest.raises(StoreUnavailable):
        await first
    async with asyncio.timeout(10):
        assert await behind
    assert asked == [[b"first"], [b"behind"]]
    assert [type(bug["exception"]) for bug in bugs] == [ZeroDivisionError]
