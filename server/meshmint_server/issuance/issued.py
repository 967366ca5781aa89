"""An issued certificate, as the edges hand it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from meshmint_server.authority import Issuer

__all__ = ["Issued"]


@dataclass(frozen=True, slots=True)
class Issued:
    """An issued certificate.

    Attributes:
        certificate_pem: PEM.
        serial_number: Lower-case hexadecimal.
        private_key_pem: Only for Issue.
        role: Name of the role that was used.
        spiffe_id: Of an X509-SVID.
        warnings: What was changed of what was asked for, for people.
    """

    issuer: Issuer
    certificate_pem: str
    serial_number: str
    private_key_pem: str | None = field(repr=False)
    role: str
    spiffe_id: str | None
    not_before: datetime
    not_after: datetime
    warnings: tuple[str, ...]

    @property
    def full_chain_pem(self) -> str:
        """The certificate and its chain, root left out, as a TLS server shows them."""
        return "".join((self.certificate_pem, self.issuer.certificate_pem, *self.issuer.chain_pem))
