"""The trust bundle as a document: as SPIFFE has it, and in PEM. Anybody may read it."""

from __future__ import annotations

import hashlib
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from meshmint_server.authority import TrustBundleFeed
from meshmint_server.errors import IssuerNotReady, Unavailable
from meshmint_server.http_api.conditional import Document, respond

__all__ = ["bundle_route"]


def bundle_route(
    bundles: TrustBundleFeed, path: str, form: Literal["json", "pem"] = "json"
) -> Route:
    """Serves the bundle under one path."""

    async def serve(request: Request) -> Response:
        try:
            bundle = bundles.current()
        except (IssuerNotReady, Unavailable) as error:
            return JSONResponse(
                {"error": error.message}, status_code=503, headers={"Retry-After": "5"}
            )
        content = bundle.document if form == "json" else "".join(bundle.roots_pem).encode("ascii")
        document = Document(
            content=content,
            media_type="application/json" if form == "json" else "application/x-pem-file",
            # Equal bytes on every worker and replica.
            tag=hashlib.sha256(content).hexdigest()[:32],
            max_age=int(bundle.refresh_hint.total_seconds()),
        )
        return respond(request, document)

    return Route(path, serve, methods=["GET", "HEAD"])
