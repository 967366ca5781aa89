"""The keys that verify JWT-SVIDs, for verifiers that know OpenID Connect and not SPIFFE.

A discovery document (OpenID Connect Discovery 1.0, section 4) and the JWK set that it
names. Anybody may read them: they hold public keys only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshmint_server.authority import JwtKeyBook
from meshmint_server.http_api.conditional import Document, respond
from meshmint_server.http_api.refusals import not_found
from meshmint_server.spiffe import key_set

__all__ = ["JwtPublication", "jwt_key_routes"]

_DISCOVERY: Final = "/.well-known/openid-configuration"
_KEYS: Final = "/.well-known/jwks.json"


@dataclass(frozen=True, slots=True)
class JwtPublication:
    """What is published of JWT-SVIDs.

    Attributes:
        keys: The keys.
        is_enabled: Whether tokens are issued; if not, keys are served while there are any.
        issuer: URL of the issuer, if tokens name one.
        path: Its path.
        max_age: How long caches may keep the keys: a new one is published for longer before
            it signs.
    """

    keys: JwtKeyBook
    is_enabled: bool
    issuer: str | None
    path: str
    max_age: timedelta


def jwt_key_routes(publication: JwtPublication) -> list[Route]:
    """The JWK set and, where there is an issuer, its discovery document."""
    max_age = int(publication.max_age.total_seconds())

    def document(content: bytes, media_type: str, keep: int = max_age) -> Document:
        tag = hashlib.sha256(content).hexdigest()[:32]  # equal bytes on every replica
        return Document(content, media_type, tag, keep)

    async def serve_keys(request: Request) -> Response:
        keys = publication.keys.published
        if not (publication.is_enabled or keys):
            return not_found()
        content = key_set(keys, "sig").encode("ascii")
        # The first key signs as soon as every worker hands it out.
        keep = max_age if keys else 0
        return respond(request, document(content, "application/jwk-set+json", keep))

    async def serve_discovery(request: Request) -> Response:
        return respond(request, document(discovery, "application/json"))

    routes = [Route(publication.path + _KEYS, serve_keys, methods=["GET", "HEAD"])]
    if publication.is_enabled and publication.issuer is not None:
        discovery = _discovery(publication.issuer)
        path = publication.path + _DISCOVERY
        routes.append(Route(path, serve_discovery, methods=["GET", "HEAD"]))
    return routes


def _discovery(issuer: str) -> bytes:
    """As Kubernetes has it for its service accounts: tokens are verified, and nobody logs in."""
    members = {
        "issuer": issuer,
        "jwks_uri": issuer + _KEYS,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    }
    return json.dumps(members, separators=(",", ":")).encode("ascii")
