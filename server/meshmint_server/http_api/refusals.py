"""What the HTTP port says when there is nothing to hand out."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response

__all__ = ["not_found", "not_there_yet"]

_RETRY_SECONDS = "5"


def not_found() -> Response:
    """Nothing has this path."""
    return PlainTextResponse("There is nothing here.\n", status_code=404)


def not_there_yet() -> Response:
    """This path will have something: the store or a key does not answer, or it is just made."""
    return PlainTextResponse(
        "Not available at present. Try again.\n",
        status_code=503,
        headers={"Retry-After": _RETRY_SECONDS},
    )
