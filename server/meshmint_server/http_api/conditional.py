"""Documents that clients and caches may keep, and how they ask whether theirs is still right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["Document", "is_known", "respond"]

_PART = 64 * 1024


@dataclass(frozen=True, slots=True)
class Document:
    """What is served under one URL at present.

    Attributes:
        content: The body.
        media_type: Its Content-Type.
        tag: Of no other body under this URL, ever: the same on every worker and replica
            (a strong entity tag, RFC 9110 section 8.8.3), without quotes.
        max_age: Seconds that a cache may keep it unasked.
        modified: When it was made; None if nobody knows.
    """

    content: bytes
    media_type: str
    tag: str
    max_age: int
    modified: datetime | None = None


def respond(request: Request, document: Document) -> Response:
    """The document, or that the client's is still right (RFC 9110 section 13)."""
    headers = {
        "ETag": f'"{document.tag}"',
        "Cache-Control": f"public, max-age={document.max_age}",
    }
    if document.modified is not None:
        headers["Last-Modified"] = format_datetime(document.modified, usegmt=True)
    if is_known(request.headers, headers["ETag"], headers.get("Last-Modified")):
        return Response(status_code=304, headers=headers)
    return _Parts(document.content, media_type=document.media_type, headers=headers)


class _Parts(Response):
    """Sends its body bit by bit, as it is read: of one sent whole, each connection has a copy."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        body = memoryview(self.body)
        for start in range(0, len(body), _PART):
            part = body[start : start + _PART]
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def is_known(headers: Headers, tag: str, modified: str | None) -> bool:
    """Whether the client has the document, by tag or, without one, by date."""
    sent = headers.getlist("if-none-match")
    if sent:
        # Weakly compared (RFC 9110 section 13.1.2).
        known = [one.strip() for value in sent for one in value.split(",")]
        return "*" in known or tag in (one.removeprefix("W/") for one in known)
    # Only the very date: after a clock was set back, a newer document has an older one.
    return modified is not None and headers.get("if-modified-since") == modified
