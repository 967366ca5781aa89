"""CRLs over HTTP (RFC 2585, RFC 5280 section 4.2.1.13): from this worker's memory.

Anybody may read them: they are signed, and name nobody.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshmint_server.authority import CrlBook, IssuerBook, PublishedCrl
from meshmint_server.http_api.conditional import Document, respond
from meshmint_server.http_api.refusals import not_found, not_there_yet
from meshmint_server.store import CrlKind

__all__ = ["crl_routes"]

# The whole path, decoded: what is not exactly this names nothing. Starlette's own
# patterns let a trailing newline through.
_PATH = re.compile(
    r"/crl/(?P<issuer>[a-z0-9._-]{1,48})/(?P<shard>0|[1-9][0-9]{0,3})(?P<delta>/delta)?"
    r"\.(?P<form>crl|pem)"
)


def crl_routes(
    crls: CrlBook,
    issuers: IssuerBook,
    max_age: timedelta,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[Route]:
    """Every CRL, full and delta, DER and PEM.

    Args:
        crls: Where they are.
        issuers: Whose CRLs there will be, if there are none yet.
        max_age: How long caches may keep one that has not expired.
        clock: The present.
    """

    async def serve(request: Request) -> Response:
        path = _PATH.fullmatch(request.scope["path"])
        if path is None:
            return not_found()
        issuer, shard = path["issuer"], int(path["shard"])
        kind = CrlKind.FULL if path["delta"] is None else CrlKind.DELTA
        crl = crls.get(issuer, shard, kind)
        if crl is not None:
            if path["form"] == "pem":
                # The first time this takes a while, if the CRL is large.
                await asyncio.to_thread(getattr, crl, "pem")
            return respond(request, _document(crl, path["form"], max_age, clock()))
        awaited = {one.name: one.crl_shards for one in issuers.published()}
        if not crls.is_loaded or (kind is CrlKind.FULL and shard < awaited.get(issuer, 0)):
            return not_there_yet()
        return not_found()

    return [Route("/crl/{path:path}", serve, methods=["GET", "HEAD"])]


def _document(crl: PublishedCrl, form: str, max_age: timedelta, now: datetime) -> Document:
    row = crl.row
    # Past its nextUpdate it is still the newest there is: verifiers see that it has
    # expired, and caches ask each time.
    fresh = max(timedelta(0), min(max_age, row.next_update - now))
    return Document(
        content=crl.der if form == "crl" else crl.pem,
        media_type="application/pkix-crl" if form == "crl" else "application/x-pem-file",
        # Numbers are given once, so a number is as good as a digest.
        tag=f"{row.number:x}",
        max_age=int(fresh.total_seconds()),
        modified=row.this_update,
    )
