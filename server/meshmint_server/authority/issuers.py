"""The issuers as every worker sees them: a snapshot that follows the store.

A snapshot is replaced whole and never changed, so a request that took an issuer
keeps it. An issuer whose key does not answer is still published; only what has
to be signed with it fails, and as unavailable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server.authority.absent_key import AbsentKey
from meshmint_server.authority.locations import Publication
from meshmint_server.authority.sharding import shard_of
from meshmint_server.errors import (
    InvalidRequest,
    IssuerNotReady,
    KeyUnavailable,
    StoreUnavailable,
)
from meshmint_server.keys import (
    Keys,
    PublicKey,
    SigningKey,
    load_public_key,
    public_key_info,
)
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow, IssuerState, Store

__all__ = ["Issuer", "IssuerBook"]

# A worker that cannot ask which issuer is active stops to sign: another may have taken over,
# and what is signed with the old one is waited for no longer than this.
_BELIEVED_SECONDS: Final = 300.0

_log = structlog.get_logger(__name__)

# Before a look that somebody asked for: strangers may ask, and the store is not theirs.
_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Issuer:
    """A CA certificate with its chain, roots and signing key.

    Attributes:
        certificate_pem: The certificate, ready to send.
        chain_pem: Above it, nearest first, root left out.
        roots_pem: The roots it chains to.
        trust_bundle_pem: What to trust: its own roots, then those of every other issuer
            that is published, so that a rotation surprises nobody.
        authority_key_identifier: What a leaf says of this issuer.
        not_after: When the first certificate of the chain, root included, expires.
        crl_shards: Into how many its CRL is split.
        crl_url: Base URL in the distribution points of a CRL that is split.
        locations: What leaves say of where its CRLs, OCSP and its certificate are: for
            each shard the extensions, none of them critical; empty if nothing is said.
    """

    name: str
    state: IssuerState
    certificate: x509.Certificate
    certificate_pem: str
    chain_pem: tuple[str, ...]
    roots_pem: tuple[str, ...]
    trust_bundle_pem: tuple[str, ...]
    key: SigningKey
    authority_key_identifier: x509.AuthorityKeyIdentifier
    not_after: datetime
    crl_shards: int = 1
    crl_url: str | None = None
    locations: tuple[tuple[x509.ExtensionType, ...], ...] = ()

    @cached_property
    def public_key(self) -> PublicKey:
        """The certificate's, with which every signature is verified."""
        return load_public_key(public_key_info(self.certificate.public_key()))  # type: ignore[arg-type]

    def locations_for(self, serial: int) -> tuple[x509.ExtensionType, ...]:
        """What the leaf with this serial number says of where CRL and the others are."""
        return self.locations[shard_of(serial, self.crl_shards)] if self.locations else ()


class IssuerBook:
    """Issuers by name, read from the store whenever their revision changes."""

    def __init__(
        self,
        store: Store,
        keyring: Keys,
        trust_domain: TrustDomain,
        publication: Publication | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._trust_domain = trust_domain
        self._publication = publication or Publication()
        self._monotonic = monotonic
        self._confirmed_at = monotonic()
        self._revision = -1
        self._sequence = 0
        self._changed = asyncio.Event()
        self._issuers: Mapping[str, Issuer] = MappingProxyType({})
        self._active: Issuer | None = None
        self._keys: dict[tuple[str, bytes], SigningKey] = {}
        self._complaints: frozenset[tuple[str, str]] = frozenset()
        self._refreshing = asyncio.Lock()
        self._look: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Reads the issuers again if they have changed, or if a key did not answer.

        Raises:
            StoreUnavailable: The database does not answer; what was known stays.
        """
        async with self._refreshing:
            await self._refresh()

    async def look_again(self) -> None:
        """Refreshes for whoever misses an issuer: another replica may just have published it.

        Anybody may ask, with whatever name: a look begins a moment after it was asked for,
        and all who ask until then share it.

        Raises:
            StoreUnavailable: The database does not answer; what was known stays.
        """
        if self._look is None:
            self._look = asyncio.create_task(self._look_soon(), name="issuers-look")
        # Shielded: the first one that asks may hang up.
        await asyncio.shield(self._look)

    async def _look_soon(self) -> None:
        await asyncio.sleep(_LOOK_SECONDS)
        async with self._refreshing:
            self._look = None  # whoever asks from here on has the next one
            await self._refresh()

    async def _refresh(self) -> None:
        asked_at = self._monotonic()
        if await self._store.issuers_revision() == self._revision:
            self._confirmed_at = asked_at
            return
        revision, rows = await self._store.load_issuers()
        sequence = revision
        issuers: dict[str, Issuer] = {}
        complaints: set[tuple[str, str]] = set()
        keys: dict[tuple[str, bytes], SigningKey] = {}
        for row in rows:
            if row.certificate is None or not row.state.is_published:
                continue
            key, complaint = await self._open(row)
            keys[row.key_uri, row.public_key] = key
            if complaint is not None:
                complaints.add((row.name, complaint))
                revision = -1  # look again: a retired one signs CRLs, too
            try:
                issuers[row.name] = _issuer(row, row.certificate, key, self._publication)
            except (ValueError, x509.ExtensionNotFound):
                # Nothing that was imported here; others must not suffer for it.
                complaints.add((row.name, "ISSUER_UNREADABLE"))
        for name, reason in complaints - self._complaints:
            _log.warning("authority.issuer_impaired", issuer=name, reason=reason)
        self._complaints = frozenset(complaints)
        self._keys = {place: key for place, key in keys.items() if not isinstance(key, AbsentKey)}
        issuers = _with_trust_bundle(issuers)
        self._issuers = MappingProxyType(issuers)
        self._active = next(
            (one for one in issuers.values() if one.state is IssuerState.ACTIVE), None
        )
        self._revision = revision
        self._confirmed_at = asked_at
        if sequence != self._sequence:
            self._sequence = sequence
            self.wake()

    @property
    def revision(self) -> int:
        """Grows with every change of an issuer or key, and is the same on every replica."""
        return self._sequence

    @property
    def changed(self) -> asyncio.Event:
        """Is set at the next change of an issuer, and is then another event."""
        return self._changed

    def wake(self) -> None:
        """Sets the event, so that whoever waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _open(self, row: IssuerRow) -> tuple[SigningKey, str | None]:
        known = self._keys.get((row.key_uri, row.public_key))
        if known is not None:
            return known, None
        try:
            return await self._keyring.open(row.key_uri, row.public_key), None
        except (KeyUnavailable, InvalidRequest) as fault:
            return AbsentKey(row.key_uri, row.public_key), fault.reason

    def active(self) -> Issuer:
        """The issuer that signs.

        Raises:
            IssuerNotReady: There is none.
        """
        if self._active is None:
            raise IssuerNotReady(
                "There is no active issuer. An operator makes one with 'meshmintd ca csr' and "
                "'meshmintd ca import'."
            )
        return self._active

    def get(self, name: str) -> Issuer:
        """A published issuer, whatever its state.

        Raises:
            IssuerNotReady: There is none of that name with a certificate.
        """
        try:
            return self._issuers[name]
        except KeyError:
            raise IssuerNotReady(f"There is no issuer '{name}' with a certificate.") from None

    def signing(self, name: str | None) -> Issuer:
        """The issuer to sign with: the active one, or the one that a role names.

        Raises:
            IssuerNotReady: There is none, or it does not sign, or not any more.
            StoreUnavailable: Which one that is was not to be learnt for minutes.
        """
        if self._monotonic() - self._confirmed_at > _BELIEVED_SECONDS:
            raise StoreUnavailable(
                "The database has not said for some minutes which issuer is active. Retry.",
                reason="ISSUERS_NOT_CONFIRMED",
            )
        if name is None:
            return self.active()
        issuer = self.get(name)
        if issuer.state is not IssuerState.ACTIVE:
            raise IssuerNotReady(
                f"The role names the issuer '{name}', which is {issuer.state.value} and does not "
                "sign. An operator has the role name the active one, or none ('issuer_ref')."
            )
        return issuer

    def published(self) -> tuple[Issuer, ...]:
        """All issuers with a certificate, by name."""
        return tuple(self._issuers.values())


def _with_trust_bundle(issuers: Mapping[str, Issuer]) -> dict[str, Issuer]:
    every = [root for issuer in issuers.values() for root in issuer.roots_pem]
    return {
        name: replace(issuer, trust_bundle_pem=tuple(dict.fromkeys((*issuer.roots_pem, *every))))
        for name, issuer in issuers.items()
    }


def _issuer(row: IssuerRow, der: bytes, key: SigningKey, publication: Publication) -> Issuer:
    certificate = x509.load_der_x509_certificate(der)
    chain = [x509.load_der_x509_certificate(one) for one in row.chain]
    roots = [x509.load_der_x509_certificate(one) for one in row.roots]
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return Issuer(
        name=row.name,
        state=row.state,
        certificate=certificate,
        certificate_pem=_pem(certificate),
        chain_pem=tuple(map(_pem, chain)),
        roots_pem=tuple(map(_pem, roots)),
        trust_bundle_pem=(),
        key=key,
        authority_key_identifier=(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        ),
        not_after=min(one.not_valid_after_utc for one in (certificate, *chain, *roots)),
        crl_shards=row.crl_shards,
        crl_url=row.crl_url,
        locations=tuple(
            publication.locations(row.name, shard, row.crl_url).extensions()
            for shard in range(row.crl_shards)
        ),
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")
