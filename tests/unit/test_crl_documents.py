"""How long a CRL may be kept, and what is said when there is none: with a clock of the test."""

from __future__ import annotations

from datetime import timedelta

import httpx
from meshmint_server.authority import PublishedCrl
from meshmint_server.http_api.crls import crl_routes
from meshmint_server.store import CrlKind, CrlRow
from starlette.applications import Starlette
from support.crls import NOON, Issuers, make_issuer

MINUTE = timedelta(minutes=1)
ISSUER = make_issuer(shards=2, url="http://pki.example.org")


class Book:
    """As much of a CrlBook as the routes look at, with one CRL: the first of two parts."""

    def __init__(self, *, is_loaded: bool = True, is_empty: bool = False) -> None:
        self.is_loaded = is_loaded
        row = CrlRow(
            issuer=ISSUER.name,
            shard=0,
            kind=CrlKind.FULL,
            number=0xABC,
            base_number=None,
            this_update=NOON,
            next_update=NOON + 60 * MINUTE,
            through=0,
            entries=0,
            document=b"\x30\x00",
        )
        self._crls = {} if is_empty else {(row.issuer, row.shard, row.kind): PublishedCrl(row)}

    def get(self, issuer: str, shard: int, kind: CrlKind) -> PublishedCrl | None:
        return self._crls.get((issuer, shard, kind))


async def ask(path: str, book: Book, after: timedelta = MINUTE) -> httpx.Response:
    routes = crl_routes(
        book,  # type: ignore[arg-type]
        Issuers(ISSUER),  # type: ignore[arg-type]
        max_age=5 * MINUTE,
        clock=lambda: NOON + after,
    )
    transport = httpx.ASGITransport(Starlette(routes=routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path)


async def test_caches_keep_it_for_a_while_and_never_past_its_next_update() -> None:
    for after, max_age in ((MINUTE, 300), (58 * MINUTE, 120), (60 * MINUTE, 0), (999 * MINUTE, 0)):
        answer = await ask("/crl/mesh-1/0.crl", Book(), after)
        assert answer.status_code == 200, "an expired one is still the newest"
        assert answer.headers["cache-control"] == f"public, max-age={max_age}"
        assert answer.headers["etag"] == '"abc"'
        assert answer.headers["last-modified"] == "Sun, 04 May 2031 12:00:00 GMT"


async def test_crl_that_will_be_there_is_told_from_one_that_never_will() -> None:
    awaited = await ask("/crl/mesh-1/1.crl", Book())
    assert awaited.status_code == 503
    assert awaited.headers["retry-after"] == "5"
    for path in ("/crl/mesh-1/2.crl", "/crl/mesh-2/0.crl", "/crl/mesh-1/0/delta.crl"):
        assert (await ask(path, Book())).status_code == 404


async def test_before_the_store_was_read_nothing_is_said_not_to_exist() -> None:
    book = Book(is_loaded=False, is_empty=True)
    assert (await ask("/crl/mesh-2/0.crl", book)).status_code == 503
    assert (await ask("/crl/mesh-2/../0.crl", book)).status_code == 404
