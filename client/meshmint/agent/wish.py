"""One renewal's request: key, CSR and request id stay the same however often it is tried.

So a reply that is lost, even for longer than one call lasts, is no second certificate.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from cryptography import x509

from meshmint.agent.config import CertificateSettings
from meshmint.aio import AsyncClient
from meshmint.keys import PrivateKey, generate_key, make_csr, private_key_pem
from meshmint.requests import CertificateOptions, new_request_id
from meshmint.results import IssuedCertificate

__all__ = ["Wish"]

# The service keeps a reply for ten minutes; nothing is gained by asking alike for longer.
_GOOD_FOR = timedelta(minutes=9)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for, again and again.

    Attributes:
        settings: The certificate's.
        since: When it was first made.
        request_id: The same for each attempt.
        key: The key, if the agent makes it.
        csr: The CSR of that key.
    """

    settings: CertificateSettings
    since: datetime
    request_id: str = field(repr=False)
    key: PrivateKey | None = field(repr=False, default=None)
    csr: x509.CertificateSigningRequest | None = field(repr=False, default=None)

    @classmethod
    async def make(cls, settings: CertificateSettings, now: datetime) -> Wish:
        """A new one, with a new key.

        Raises:
            InvalidArgument: Names that a CSR cannot hold.
        """
        wish = cls(settings, now, new_request_id())
        if settings.key_from == "service":
            return wish
        # Beside the event loop: an RSA key takes long.
        key = await asyncio.to_thread(generate_key, settings.key)
        names = settings.names
        csr = make_csr(
            key,
            common_name=names.common_name,
            dns_names=names.dns_names,
            ip_addresses=names.ip_addresses,
            uris=names.uris,
            email_addresses=names.email_addresses,
        )
        return replace(wish, key=key, csr=csr)

    def is_stale(self, now: datetime) -> bool:
        """Whether a new one is as good; also if the clock was set back."""
        return not self.since <= now < self.since + _GOOD_FOR

    async def ask(self, client: AsyncClient) -> IssuedCertificate:
        """Asks once, with the retries of a call.

        Raises:
            MeshmintError: There is no certificate.
        """
        settings = self.settings
        options: CertificateOptions = {**settings.options(), "request_id": self.request_id}
        if self.key is None or self.csr is None:
            return await client.issue(settings.role, key_algorithm=settings.key, **options)
        # What stands in the CSR is not said twice; what a CSR is not asked for goes beside it.
        for name in ("common_name", "dns_names", "ip_addresses", "uris", "email_addresses"):
            options.pop(name, None)  # type: ignore[misc]
        signed = await client.sign(self.csr, settings.role, **options)
        return IssuedCertificate(
            signed.certificate_pem,
            signed.chain_pem,
            signed.trust_bundle_pem,
            signed.serial_number,
            signed.spiffe_id,
            signed.not_before,
            signed.not_after,
            signed.role,
            signed.issuer,
            signed.warnings,
            private_key_pem(self.key),
        )
