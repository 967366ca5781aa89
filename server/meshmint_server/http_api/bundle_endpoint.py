"""The SPIFFE bundle endpoint (SPIFFE Federation, section 5): the trust bundle over HTTPS.

Anybody may read it: the standard forbids asking the client who it is.
"""

from __future__ import annotations

from starlette.applications import Starlette

from meshmint_server.authority import TrustBundleFeed
from meshmint_server.http_api.trust_bundle import bundle_route

__all__ = ["build_bundle_endpoint"]


def build_bundle_endpoint(bundles: TrustBundleFeed, path: str) -> Starlette:
    """The application behind the bundle endpoint's port."""
    application = Starlette(routes=[bundle_route(bundles, path)])
    # To where the Host header says: a path that names nothing is not found.
    application.router.redirect_slashes = False
    return application
