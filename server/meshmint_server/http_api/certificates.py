"""CA certificates over HTTP (RFC 2585, RFC 5280 section 4.2.2.1): what AIA points to."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshmint_server.authority import Issuer, IssuerBook
from meshmint_server.http_api.conditional import Document, respond
from meshmint_server.http_api.refusals import not_found

__all__ = ["certificate_routes"]

_PATH = re.compile(r"/ca/(?P<issuer>[a-z0-9._-]{1,48})(?P<form>\.crt|\.pem|/chain\.pem)")
# An issuer keeps its certificate, but its root may issue another for the same key.
_MAX_AGE: Final = 3600


def certificate_routes(issuers: IssuerBook) -> list[Route]:
    """Every published issuer's certificate, DER and PEM, and its chain."""

    async def serve(request: Request) -> Response:
        path = _PATH.fullmatch(request.scope["path"])
        if path is None:
            return not_found()
        issuer = next((one for one in issuers.published() if one.name == path["issuer"]), None)
        if issuer is None:
            return not_found()
        return respond(request, _document(issuer, path["form"]))

    return [Route("/ca/{path:path}", serve, methods=["GET", "HEAD"])]


def _document(issuer: Issuer, form: str) -> Document:
    if form == ".crt":
        content = issuer.certificate.public_bytes(Encoding.DER)
    elif form == ".pem":
        content = issuer.certificate_pem.encode("ascii")
    else:
        content = "".join((issuer.certificate_pem, *issuer.chain_pem)).encode("ascii")
    return Document(
        content=content,
        media_type="application/pkix-cert" if form == ".crt" else "application/x-pem-file",
        tag=hashlib.sha256(content).hexdigest()[:32],
        max_age=_MAX_AGE,
        # Of a chain nobody knows: what is above may be replaced.
        modified=None if form == "/chain.pem" else issuer.certificate.not_valid_before_utc,
    )
