"""The HTTP edge: health, metrics, and what an authority publishes. It has no authority itself."""

from __future__ import annotations

from datetime import timedelta

from starlette.applications import Starlette

from meshmint_server.authority import CrlBook, IssuerBook, TrustBundleFeed
from meshmint_server.authority.ocsp import OcspResponder
from meshmint_server.http_api.bundle_endpoint import build_bundle_endpoint
from meshmint_server.http_api.certificates import certificate_routes
from meshmint_server.http_api.crls import crl_routes
from meshmint_server.http_api.jwt_keys import JwtPublication, jwt_key_routes
from meshmint_server.http_api.listener import bind, serve_http
from meshmint_server.http_api.ocsp import ocsp_routes
from meshmint_server.http_api.operation import operation_routes
from meshmint_server.http_api.server_tls import CertificateFiles, ServerTls
from meshmint_server.http_api.trust_bundle import bundle_route
from meshmint_server.issuance import ReadinessProbe

__all__ = [
    "CertificateFiles",
    "JwtPublication",
    "ServerTls",
    "bind",
    "build_bundle_endpoint",
    "build_http_api",
    "serve_http",
]


def build_http_api(
    probe: ReadinessProbe,
    issuers: IssuerBook,
    bundles: TrustBundleFeed,
    crls: CrlBook,
    responder: OcspResponder,
    *,
    crl_max_age: timedelta,
    jwt: JwtPublication | None = None,
) -> Starlette:
    """The application behind the HTTP port.

    Args:
        probe: Whether this worker is ready.
        issuers: Whose certificates are handed out.
        bundles: The trust bundle.
        crls: The CRLs.
        responder: Answers OCSP requests.
        crl_max_age: How long caches may keep a CRL.
        jwt: What is published of JWT-SVIDs; None: nothing.
    """
    application = Starlette(
        routes=[
            # First: an issuer's path may be one below which others take everything.
            *(() if jwt is None else jwt_key_routes(jwt)),
            *operation_routes(probe),
            *certificate_routes(issuers),
            *crl_routes(crls, issuers, crl_max_age),
            *ocsp_routes(responder),
            bundle_route(bundles, "/bundle.json"),
            bundle_route(bundles, "/bundle.pem", "pem"),
        ]
    )
    # To where the Host header says: a path that names nothing is not found.
    application.router.redirect_slashes = False
    return application
