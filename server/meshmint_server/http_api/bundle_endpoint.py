"""The SPIFFE bundle endpoint (SPIFFE Federation, section 5): the trust bundle over HTTPS.

Anybody may read it: the standard forbids asking the client who it is.
"""

from __future__ import annotations

import hashlib

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meshmint_server.authority import TrustBundleFeed
from meshmint_server.errors import IssuerNotReady

__all__ = ["build_bundle_endpoint"]


def build_bundle_endpoint(bundles: TrustBundleFeed, path: str) -> Starlette:
    """The application behind the bundle endpoint's port."""

    async def serve(request: Request) -> Response:
        try:
            bundle = bundles.current()
        except IssuerNotReady as error:
            return JSONResponse(
                {"error": error.message}, status_code=503, headers={"Retry-After": "5"}
            )
        # Equal bytes on every worker and replica, so a strong tag (RFC 9110 section 8.8.3).
        tag = f'"{hashlib.sha256(bundle.document).hexdigest()[:32]}"'
        headers = {
            "ETag": tag,
            "Cache-Control": f"public, max-age={int(bundle.refresh_hint.total_seconds())}",
        }
        if _is_known(tag, request.headers.getlist("if-none-match")):
            return Response(status_code=304, headers=headers)
        return Response(bundle.document, media_type="application/json", headers=headers)

    return Starlette(routes=[Route(path, serve, methods=["GET", "HEAD"])])


def _is_known(tag: str, sent: list[str]) -> bool:
    """Whether If-None-Match names the tag; weakly compared (RFC 9110 section 13.1.2)."""
    known = [one.strip() for value in sent for one in value.split(",")]
    return "*" in known or tag in (one.removeprefix("W/") for one in known)
