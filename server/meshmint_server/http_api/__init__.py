"""The HTTP edge: health, readiness, metrics, trust bundle. It has no authority of its own."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from meshmint_server import telemetry
from meshmint_server.http_api.bundle_endpoint import build_bundle_endpoint
from meshmint_server.http_api.listener import bind, serve_http
from meshmint_server.http_api.server_tls import CertificateFiles, ServerTls
from meshmint_server.issuance import ReadinessProbe

__all__ = [
    "CertificateFiles",
    "ServerTls",
    "bind",
    "build_bundle_endpoint",
    "build_http_api",
    "serve_http",
]


def build_http_api(probe: ReadinessProbe) -> Starlette:
    """The application behind the HTTP port."""

    async def healthz(_request: Request) -> Response:
        """Alive: the event loop answers."""
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        """Ready: a real signature was made lately with the real key."""
        current = probe.current
        return JSONResponse(
            {"ready": current.is_ready, "reason": current.reason},
            status_code=200 if current.is_ready else 503,
        )

    async def metrics(_request: Request) -> Response:
        return Response(
            telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/metrics", metrics),
        ]
    )
