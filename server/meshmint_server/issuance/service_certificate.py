"""The service's own TLS certificate, issued by itself and renewed before it ends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from meshmint_server.audit import Origin
from meshmint_server.authority import IssuerBook
from meshmint_server.errors import MeshmintError
from meshmint_server.issuance.deadline import Deadline
from meshmint_server.issuance.issued import Issued
from meshmint_server.issuance.mint import Mint
from meshmint_server.policy import Bounds, Caller, CertificateRequest, Names, Role, Validity
from meshmint_server.spiffe import SpiffeId, TrustDomain

__all__ = ["SERVICE_ROLE", "ServiceCertificate", "service_spiffe_id"]

log = structlog.get_logger(__name__)

SERVICE_ROLE = "meshmint-server"
"""Role of the service's own certificates; no store holds it."""

_RETRY_SECONDS = 5.0
_NAP_SECONDS = 1.0


def service_spiffe_id(trust_domain: TrustDomain) -> SpiffeId:
    """The service's own SPIFFE ID."""
    return SpiffeId(trust_domain, ("meshmint", "server"))


class ServiceCertificate:
    """Issues a certificate for the service's own names, and keeps it fresh.

    It is granted by a role of its own that no store holds and no caller can
    name, and it takes the same path as every other certificate.
    """

    def __init__(
        self,
        mint: Mint,
        issuers: IssuerBook,
        *,
        trust_domain: TrustDomain,
        dns_names: Sequence[str],
        ip_addresses: Sequence[str],
        lifetime: timedelta,
    ) -> None:
        self._mint = mint
        self._issuers = issuers
        self._lifetime = lifetime
        # Without the reserved names: they are reserved for this.
        self._bounds = Bounds(trust_domain, lifetime, lifetime)
        self._caller = Caller(
            authenticator="meshmint",
            subject="meshmint-server",
            attributes={},
            spiffe_id=service_spiffe_id(trust_domain),
            expires_at=datetime.max.replace(tzinfo=UTC),
        )
        self._names = Names(dns_names=tuple(dns_names), ip_addresses=tuple(ip_addresses))
        self._role = Role.from_document(
            {
                "name": SERVICE_ROLE,
                "callers": [{"authenticator": "meshmint"}],
                "spiffe": "own",
                "allow_any_name": True,
                "allow_localhost": True,
                "allow_ip_sans": True,
                "enforce_hostnames": True,
                "allow_wildcard_certificates": False,
                "key_type": "ec",
                "ttl": int(lifetime.total_seconds()),
                "max_ttl": int(lifetime.total_seconds()),
            }
        )

    async def issue(self) -> Issued:
        """Issues one certificate with a fresh key.

        Raises:
            MeshmintError: As for any certificate.
        """
        # Shorter than asked when the issuer ends first: a service with an old
        # issuer still has to be reached, so that its operator can replace it.
        remaining = self._issuers.active().not_after - datetime.now(UTC) - timedelta(seconds=1)
        request = CertificateRequest(
            names=self._names, validity=Validity(ttl=min(self._lifetime, remaining))
        )
        return await self._mint.issue_under(
            self._role,
            self._caller,
            request,
            origin=Origin(uuid.uuid4().hex, "self", "self"),
            deadline=Deadline.after(10),
            bounds=self._bounds,
        )

    async def follow(self, use: Callable[[Issued], None], current: Issued) -> None:
        """Renews at two thirds of the lifetime, for ever; a failure keeps the old one.

        At once when its issuer is published no more: whoever asks now could not verify it.
        """
        while True:
            now = datetime.now(UTC)
            renew_at = now + (current.not_after - now) * 2 / 3
            # In short naps, so that a clock that is set forward is noticed.
            while datetime.now(UTC) < renew_at and self._is_published(current):  # noqa: ASYNC110
                await asyncio.sleep(_NAP_SECONDS)
            try:
                current = await self.issue()
            except MeshmintError as error:
                log.warning("the service's own certificate was not renewed", reason=error.reason)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                use(current)

    def _is_published(self, current: Issued) -> bool:
        return any(issuer.name == current.issuer.name for issuer in self._issuers.published())
