"""OCSP: how long answers and the certificates of those who sign them last."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field, model_validator

from meshmint_server.config.fields import Section, WholeSeconds

__all__ = ["OcspSettings"]


class OcspSettings(Section):
    """OCSP answers, on the HTTP port.

    Attributes:
        lifetime: From an answer's thisUpdate to its nextUpdate. Clients and caches may keep
            it for so long, and do not hear of a revocation before that.
        responder_lifetime: Lifetime of the certificates under which answers are signed; at
            least three times ``lifetime``. Renewed at two thirds.
        max_cached: The most certificates that one worker keeps answers for.
    """

    lifetime: WholeSeconds = timedelta(hours=1)
    responder_lifetime: WholeSeconds = timedelta(hours=24)
    max_cached: Annotated[int, Field(ge=0)] = 20_000

    @model_validator(mode="after")
    def _check_lifetimes(self) -> OcspSettings:
        if self.responder_lifetime < 3 * self.lifetime:
            raise ValueError(
                "'responder_lifetime' must be at least three times 'lifetime': answers are "
                "signed until two thirds of it, and have to be valid to their end"
            )
        return self
