"""JWT-SVIDs: whether they are issued, by whom they say they are, how their keys rotate."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, model_validator

from meshmint_server.config.fields import PositiveDuration, Section

__all__ = ["JwtSvidSettings"]

# OpenID Connect Discovery 1.0, section 3: https, no query and no fragment. Verifiers compare
# it as text, so it has one spelling. Loopback may do without TLS, for trying things out.
_ISSUER = re.compile(
    r"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?"
    r"(?:/[A-Za-z0-9._~-]+)*"
)
_LONGEST_ISSUER = 200
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _issuer(value: str) -> str:
    segments = value.split("/")[3:]
    if (
        len(value) > _LONGEST_ISSUER
        or not _ISSUER.fullmatch(value)
        or not {".", ".."}.isdisjoint(segments)
    ):
        raise ValueError(
            "must be an https:// URL with a lower-case host, at most "
            f"{_LONGEST_ISSUER} characters, no query, and no slash at its end"
        )
    parts = urlsplit(value)
    if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        raise ValueError("must be an https:// URL: verifiers fetch the keys from there")
    return value


class JwtSvidSettings(Section):
    """JWT-SVIDs: whether they are issued, and how the keys that sign them rotate.

    Attributes:
        enabled: Issues JWT-SVIDs to roles that allow them.
        issuer: URL of the claim ``iss``, under which others reach the HTTP port for
            `/.well-known/openid-configuration`, such as `https://jwt.example.org`. Without
            it tokens have no ``iss``, and there is no discovery document.
        period: How long a key signs before the next one does; at least twice `publish_for`.
        publish_for: How long a key is published before it signs; by default five times
            `bundle_endpoint.refresh_hint`.
    """

    enabled: bool = False
    issuer: Annotated[str, AfterValidator(_issuer)] | None = None
    period: PositiveDuration = timedelta(days=30)
    publish_for: PositiveDuration | None = None

    @property
    def path(self) -> str:
        """Path of the issuer's URL, below which its documents are; empty for none."""
        return "" if self.issuer is None else urlsplit(self.issuer).path

    @model_validator(mode="after")
    def _check_order(self) -> JwtSvidSettings:
        if self.publish_for is not None and self.period < 2 * self.publish_for:
            raise ValueError("'period' must be at least twice 'publish_for'")
        return self
