"""Where others find what an issuer publishes: paths of the HTTP port, URLs in certificates."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID

from meshmint_server.store import CrlKind

__all__ = ["OCSP_PATH", "Locations", "Publication", "certificate_path", "crl_path"]

Item: TypeAlias = Literal["crl", "ocsp", "ca"]

OCSP_PATH: Final = "/ocsp"


def certificate_path(issuer: str) -> str:
    """Of an issuer's certificate, DER."""
    return f"/ca/{issuer}.crt"


def crl_path(issuer: str, shard: int, kind: CrlKind = CrlKind.FULL) -> str:
    """Of one CRL, DER."""
    return f"/crl/{issuer}/{shard}{'.crl' if kind is CrlKind.FULL else '/delta.crl'}"


def distribution_point(url: str) -> x509.DistributionPoint:
    """A distribution point that is one URL (RFC 5280 section 4.2.1.13)."""
    return x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)


@dataclass(frozen=True, slots=True)
class Locations:
    """The URLs that a certificate names; None names none.

    Attributes:
        crl: Of the CRL that would list it.
        ocsp: Of the OCSP responder.
        ca: Of its issuer's certificate, DER.
    """

    crl: str | None = None
    ocsp: str | None = None
    ca: str | None = None

    def extensions(self) -> tuple[x509.ExtensionType, ...]:
        """CRL distribution points and authority information access; neither is critical.

        RFC 5280 sections 4.2.1.13 and 4.2.2.1.
        """
        extensions: list[x509.ExtensionType] = []
        if self.crl is not None:
            extensions.append(x509.CRLDistributionPoints([distribution_point(self.crl)]))
        access = [
            x509.AccessDescription(method, x509.UniformResourceIdentifier(url))
            for method, url in (
                (AuthorityInformationAccessOID.OCSP, self.ocsp),
                (AuthorityInformationAccessOID.CA_ISSUERS, self.ca),
            )
            if url is not None
        ]
        if access:
            extensions.append(x509.AuthorityInformationAccess(access))
        return tuple(extensions)


@dataclass(frozen=True, slots=True)
class Publication:
    """What is said of where the HTTP port is.

    Attributes:
        url: Base URL under which others reach it, without a slash at its end; None:
            nothing is said.
        include: What certificates name.
    """

    url: str | None = None
    include: Set[Item] = frozenset({"crl", "ocsp", "ca"})

    def locations(self, issuer: str, shard: int, crl_url: str | None) -> Locations:
        """What a certificate names.

        Args:
            issuer: Who signs it.
            shard: Which of the issuer's CRLs would list it.
            crl_url: Base URL of the CRLs of an issuer that has several.
        """
        if self.url is None:
            return Locations()
        return Locations(
            crl=(crl_url or self.url) + crl_path(issuer, shard) if "crl" in self.include else None,
            ocsp=self.url + OCSP_PATH if "ocsp" in self.include else None,
            ca=self.url + certificate_path(issuer) if "ca" in self.include else None,
        )
