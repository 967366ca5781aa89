"""Which other trust domains are federated with, and where their bundles are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, model_validator

from meshmint_server.authority import Federation
from meshmint_server.config.fields import Section, parse_trust_domain
from meshmint_server.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

__all__ = ["FederationSettings", "refuse_repeated"]


def _bundle_url(value: str) -> str:
    # SPIFFE Federation sections 5.2.1.1 and 5.2.2.1: https, and no userinfo.
    parts = urlsplit(value)
    if parts.scheme != "https" or not parts.hostname or not value.isascii():
        raise ValueError("must be an https:// URL")
    if not value.isprintable() or " " in value or "@" in parts.netloc or parts.fragment:
        raise ValueError("a bundle endpoint's URL has no user, no fragment and no blanks")
    if parts.port == 0:
        raise ValueError("a URL must not have the port 0")
    return value


def _spiffe_id(value: object) -> SpiffeId | None:
    if value is None or isinstance(value, SpiffeId):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text, such as 'spiffe://other.example/bundle-endpoint'")
    try:
        return SpiffeId.parse(value)
    except InvalidSpiffeId as error:
        raise ValueError(str(error)) from error


class FederationSettings(Section):
    """Another trust domain whose bundle is fetched and handed out by its name.

    Attributes:
        trust_domain: Its name.
        url: Of its bundle endpoint: https.
        profile: How the endpoint is verified: ``https_web``: as a browser does;
            ``https_spiffe``: as the X509-SVID `endpoint_spiffe_id`.
        endpoint_spiffe_id: Who serves the bundle, such as
            ``spiffe://other.example/meshmint/server``.
        bundle: File with a bundle (a JWK set) to verify that server with until its bundle
            was fetched once; not needed if its trust domain is federated with as well.
        ca: File of roots, PEM, that verify a server of profile ``https_web`` instead of the
            system's.
    """

    trust_domain: Annotated[TrustDomain, BeforeValidator(parse_trust_domain), PlainSerializer(str)]
    url: Annotated[str, AfterValidator(_bundle_url)]
    profile: Literal["https_web", "https_spiffe"]
    endpoint_spiffe_id: Annotated[
        SpiffeId | None,
        BeforeValidator(_spiffe_id),
        PlainSerializer(str, when_used="unless-none"),
    ] = None
    bundle: Path | None = None
    ca: Path | None = None

    @model_validator(mode="after")
    def _check_profile(self) -> FederationSettings:
        if self.profile == "https_web":
            if self.endpoint_spiffe_id is not None or self.bundle is not None:
                raise ValueError("'endpoint_spiffe_id' and 'bundle' go with profile 'https_spiffe'")
            return self
        if self.ca is not None:
            raise ValueError("'ca' goes with profile 'https_web'")
        if self.endpoint_spiffe_id is None:
            raise ValueError("profile 'https_spiffe' needs 'endpoint_spiffe_id'")
        is_self_serving = self.endpoint_spiffe_id.trust_domain == self.trust_domain
        if is_self_serving and self.bundle is None:
            raise ValueError(
                "an endpoint with an X509-SVID of its own trust domain needs 'bundle', to be "
                "verified with the first time"
            )
        return self

    def build(self) -> Federation:
        """The same as a value of the room that fetches."""
        return Federation(
            trust_domain=self.trust_domain,
            url=self.url,
            endpoint_spiffe_id=self.endpoint_spiffe_id,
            bundle_file=self.bundle,
            ca_file=self.ca,
        )


def refuse_repeated(value: tuple[FederationSettings, ...]) -> tuple[FederationSettings, ...]:
    """Gives the federations back if each trust domain stands once; ValueError otherwise."""
    names = [str(one.trust_domain) for one in value]
    if len(set(names)) != len(names):
        raise ValueError("a trust domain is federated with twice")
    return value
