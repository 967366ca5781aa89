"""Documents that clients and caches may keep, and how they ask whether theirs is still right."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["Document", "respond"]


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
    if _is_known(request, headers["ETag"], headers.get("Last-Modified")):
        return Response(status_code=304, headers=headers)
    return Response(document.content, media_type=document.media_type, headers=headers)


def _is_known(request: Request, tag: str, modified: str | None) -> bool:
    """Whether the client has the document, by tag or, without one, by date."""
    sent = request.headers.getlist("if-none-match")
    if sent:
        # Weakly compared (RFC 9110 section 13.1.2).
        known = [one.strip() for value in sent for one in value.split(",")]
        return "*" in known or tag in (one.removeprefix("W/") for one in known)
    # Only the very date: after a clock was set back, a newer document has an older one.
    return modified is not None and request.headers.get("if-modified-since") == modified
