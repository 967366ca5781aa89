"""How issuers succeed each other."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field, model_validator

from meshmint_server.config.fields import PositiveDuration, Section
from meshmint_server.keys import KeyAlgorithmName

__all__ = ["RotationSettings", "UpstreamSettings"]


class UpstreamSettings(Section):
    """Who signs the certificates of issuers, so that the service rotates by itself.

    Attributes:
        command: Program and arguments; no shell is in between. It gets the CSR on
            standard input, PEM, and writes the certificate, those above it and the root
            to standard output, PEM.
        time_limit: The longest that it may take.
    """

    command: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    time_limit: PositiveDuration = timedelta(minutes=1)


class RotationSettings(Section):
    """How issuers succeed each other.

    Attributes:
        prepare_before: How long before the active issuer ends its successor is to be
            prepared; by default half its life, and at most 30 days or twice `max_ttl`,
            whichever is more.
        activate_before: How long before that end the successor signs; by default a sixth
            of the life, and at most 7 days or `max_ttl`, whichever is more.
        publish_for: How long a new root is in the trust bundle before anything below it
            signs; by default five times `bundle_endpoint.refresh_hint`.
        algorithm: Kind of key of new issuers.
        upstream: Who signs their certificates; without it an operator has the root sign.
    """

    prepare_before: PositiveDuration | None = None
    activate_before: PositiveDuration | None = None
    publish_for: PositiveDuration | None = None
    algorithm: KeyAlgorithmName = KeyAlgorithmName.EC_P256
    upstream: UpstreamSettings | None = None

    @model_validator(mode="after")
    def _check_order(self) -> RotationSettings:
        if (
            self.prepare_before is not None
            and self.activate_before is not None
            and self.prepare_before <= self.activate_before
        ):
            raise ValueError("'prepare_before' must be longer than 'activate_before'")
        return self
