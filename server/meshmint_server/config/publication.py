"""What certificates say of where CRLs, OCSP and CA certificates are to be had."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from meshmint_server.config.fields import Section

__all__ = ["PublicationSettings", "RootPublicationSettings"]

# ASCII that needs no escape, no user, no query and no fragment: what goes into
# certificates for years is not the place for surprises.
_URL = re.compile(
    r"https?://(?:\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?"
    r"(?:/[A-Za-z0-9._~-]+)*"
)
_LONGEST_URL = 200


def _plain_url(value: str) -> str:
    segments = value.split("/")[3:]
    if (
        len(value) > _LONGEST_URL
        or not _URL.fullmatch(value)
        or not {".", ".."}.isdisjoint(segments)
    ):
        raise ValueError(
            "must be an http:// or https:// URL with a lower-case host, at most "
            f"{_LONGEST_URL} characters, no query, and no slash at its end"
        )
    return value


def _distinct(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) < len(value):
        raise ValueError("names something twice")
    return value


Url = Annotated[str, AfterValidator(_plain_url)]


class RootPublicationSettings(Section):
    """Where the root's CRL, OCSP responder and certificate are: `ca csr` asks for them.

    Attributes:
        crl: URL of the root's CRL.
        ocsp: URL of its OCSP responder.
        ca: URL of its certificate, DER.
    """

    crl: Url | None = None
    ocsp: Url | None = None
    ca: Url | None = None


class PublicationSettings(Section):
    """What certificates say of where CRLs, OCSP and CA certificates are to be had.

    Attributes:
        url: Base URL under which others reach the HTTP port, such as
            `http://pki.example.org`; without it certificates say nothing.
        include: What certificates name: ``crl``, ``ocsp``, ``ca`` (the issuer's
            certificate).
        crl_shards: Into how many CRLs the revocations of an issuer are split, for issuers
            made from now on. More than 1 needs ``url``, which then stays with the issuer
            for life.
        root: What the certificates of issuers themselves name.
    """

    url: Url | None = None
    include: Annotated[tuple[Literal["crl", "ocsp", "ca"], ...], AfterValidator(_distinct)] = (
        "crl",
        "ocsp",
        "ca",
    )
    crl_shards: Annotated[int, Field(ge=1, le=256)] = 1
    root: RootPublicationSettings = RootPublicationSettings()

    @model_validator(mode="after")
    def _check_shards(self) -> PublicationSettings:
        if self.crl_shards > 1 and (self.url is None or "crl" not in self.include):
            raise ValueError(
                "'crl_shards' above 1 needs 'url', and 'crl' in 'include': "
                "certificates have to say which of the CRLs is theirs"
            )
        return self
