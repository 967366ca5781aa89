"""The HTTP edge: health, readiness and metrics. It has no authority of its own."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from meshmint_server import telemetry
from meshmint_server.issuance import ReadinessProbe

__all__ = ["build_http_api"]


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
