"""The issuers as every worker sees them: a snapshot that follows the store."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server.errors import IssuerNotReady, KeyUnavailable
from meshmint_server.keys import KeyRing, SigningKey
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow, IssuerState, Store

__all__ = ["Issuer", "IssuerBook"]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA certificate with its chain, roots and signing key."""

    name: str
    state: IssuerState
    certificate: x509.Certificate
    certificate_pem: str
    chain_pem: tuple[str, ...]
    roots_pem: tuple[str, ...]
    key: SigningKey
    authority_key_identifier: x509.AuthorityKeyIdentifier
    not_after: datetime


class IssuerBook:
    """Issuers by name, read from the store whenever their revision changes."""

    def __init__(self, store: Store, keyring: KeyRing, trust_domain: TrustDomain) -> None:
        self._store = store
        self._keyring = keyring
        self._trust_domain = trust_domain
        self._revision = -1
        self._issuers: dict[str, Issuer] = {}
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        """Reads the issuers again if they have changed."""
        if await self._store.issuers_revision() == self._revision:
            return
        async with self._refreshing:
            revision, rows = await self._store.load_issuers()
            issuers = {}
            for row in rows:
                if row.certificate is None:
                    continue
                try:
                    issuers[row.name] = await self._open(row, row.certificate)
                except KeyUnavailable as error:
                    log.warning(
                        "an issuer's key is not there", issuer=row.name, reason=error.reason
                    )
                    revision = -1
            self._issuers = issuers
            self._revision = revision

    async def _open(self, row: IssuerRow, der: bytes) -> Issuer:
        certificate = x509.load_der_x509_certificate(der)
        chain = [x509.load_der_x509_certificate(one) for one in row.chain]
        roots = [x509.load_der_x509_certificate(one) for one in row.roots]
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        return Issuer(
            name=row.name,
            state=row.state,
            certificate=certificate,
            certificate_pem=_pem(certificate),
            chain_pem=tuple(map(_pem, chain)),
            roots_pem=tuple(map(_pem, roots)),
            key=await self._keyring.open(row.key_uri, row.public_key),
            authority_key_identifier=(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)
            ),
            not_after=min(one.not_valid_after_utc for one in (certificate, *chain, *roots)),
        )

    def active(self) -> Issuer:
        """The issuer that signs."""
        for issuer in self._issuers.values():
            if issuer.state is IssuerState.ACTIVE:
                return issuer
        raise IssuerNotReady(
            "there is no active issuer; an operator makes one with 'meshmintd ca csr' "
            "and 'meshmintd ca import'"
        )

    def get(self, name: str) -> Issuer:
        """The issuer of that name."""
        try:
            return self._issuers[name]
        except KeyError:
            raise IssuerNotReady(f"there is no issuer {name!r} that can sign") from None

    def published(self) -> tuple[Issuer, ...]:
        """All issuers with a certificate."""
        return tuple(self._issuers.values())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
