"""What a monitoring system asks: alive, ready, metrics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from meshmint_server import telemetry
from meshmint_server.issuance import ReadinessProbe

__all__ = ["operation_routes"]


def operation_routes(probe: ReadinessProbe) -> list[Route]:
    """Health, readiness, metrics."""

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

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
    ]
