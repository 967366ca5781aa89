"""OCSP over HTTP (RFC 6960 appendix A.1, RFC 5019 sections 5 and 6): bytes in, bytes out.

What is wrong with a request is told in OCSP's own words with status 200; HTTP errors
are for what is no request at all, or too much of one. Nothing is parsed here.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from datetime import UTC, datetime
from email.utils import format_datetime

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from meshmint_server.authority.locations import OCSP_PATH
from meshmint_server.authority.ocsp import Answer, OcspResponder
from meshmint_server.http_api.conditional import is_known

__all__ = ["ocsp_routes"]

_REQUEST_TYPE = "application/ocsp-request"
_RESPONSE_TYPE = "application/ocsp-response"
# A request about one certificate has about 100 bytes, and with a signature and its chain
# some thousands.
_LARGEST = 16 * 1024
_BODY_SECONDS = 10.0
_READS = ("GET", "HEAD")


def ocsp_routes(responder: OcspResponder) -> list[Route]:
    """POST /ocsp, and GET and HEAD /ocsp/{request in base64}."""
    endpoint = _Endpoint(responder)
    return [Route(OCSP_PATH, endpoint), Route(OCSP_PATH + "/{request:path}", endpoint)]


class _Endpoint:
    """Below Starlette's requests and responses: a cached answer takes less time than these."""

    def __init__(self, responder: OcspResponder) -> None:
        self._responder = responder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoded: str = scope["path_params"].get("request", "")
        if scope["method"] == "POST" and not encoded:
            response = await self._post(Headers(scope=scope), receive)
        elif scope["method"] in _READS and encoded:
            response = await self._get(encoded, Headers(scope=scope))
        else:
            allowed = ", ".join(_READS) if encoded else "POST"
            response = _refusal(405, f"Use {allowed} here.", Allow=allowed)
        await response(scope, receive, send)

    async def _post(self, headers: Headers, receive: Receive) -> Response:
        media_type = headers.get("content-type", _REQUEST_TYPE)
        if media_type.partition(";")[0].strip().lower() != _REQUEST_TYPE:
            return _refusal(415, f"Send Content-Type: {_REQUEST_TYPE}.")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                body = await _read(receive)
        except TimeoutError:
            return _refusal(408, "The request did not come to its end.", Connection="close")
        if body is None:
            return _refusal(413, f"A request has at most {_LARGEST} bytes.", Connection="close")
        return Response((await self._responder.answer(body)).document, media_type=_RESPONSE_TYPE)

    async def _get(self, encoded: str, headers: Headers) -> Response:
        if len(encoded) > _LARGEST * 4 // 3:
            return _refusal(414, f"A request has at most {_LARGEST} bytes.")
        try:
            document = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            document = b""  # which is malformed
        answer = await self._responder.answer(document)
        caching = _caching(answer)
        if "ETag" in caching and is_known(headers, caching["ETag"], caching["Last-Modified"]):
            return Response(status_code=304, headers=caching)
        return Response(answer.document, media_type=_RESPONSE_TYPE, headers=caching)


async def _read(receive: Receive) -> bytes | None:
    """The body; None, and the rest unread, if it is too large."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > _LARGEST:
            return None
        if not message.get("more_body", False):
            return bytes(body)


def _caching(answer: Answer) -> dict[str, str]:
    """What caches are told (RFC 5019 section 6.2).

    They may keep an answer for as long as this worker gives it itself, so that a cache
    never gives out one that is older than what is to be had here.
    """
    if answer.this_update is None or answer.next_update is None or answer.fresh_until is None:
        return {"Cache-Control": "no-store"}
    remaining = max(0, int((answer.fresh_until - datetime.now(UTC)).total_seconds()))
    return {
        "Cache-Control": f"max-age={remaining}, public, no-transform, must-revalidate",
        "Last-Modified": format_datetime(answer.this_update, usegmt=True),
        "Expires": format_datetime(answer.next_update, usegmt=True),
        "ETag": f'"{hashlib.sha256(answer.document).hexdigest()[:32]}"',
    }


def _refusal(status: int, text: str, **headers: str) -> Response:
    return PlainTextResponse(text + "\n", status_code=status, headers=headers)
