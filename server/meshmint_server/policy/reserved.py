"""Names that no role grants: those by which callers know this service itself.

Its certificate comes from the same CA as everybody's. Who got one with its name
could pose as the service, and be sent tokens.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from meshmint_server.policy.findings import Findings
from meshmint_server.policy.names import parse_dns_name, parse_ip
from meshmint_server.spiffe import SpiffeId

__all__ = ["ReservedNames"]

# On one machine everybody is localhost; keeping that name would protect nobody.
_LOCAL = ("localhost", "localdomain")


@dataclass(frozen=True, slots=True)
class ReservedNames:
    """The service's own names.

    Attributes:
        dns_names: In normal form, without those of the local host.
        addresses: Without loopback addresses.
        spiffe_id: Its SPIFFE ID.
    """

    dns_names: frozenset[str] = frozenset()
    addresses: frozenset[ipaddress.IPv4Address | ipaddress.IPv6Address] = frozenset()
    spiffe_id: SpiffeId | None = None

    @classmethod
    def of_service(
        cls, spiffe_id: SpiffeId, dns_names: Sequence[str], addresses: Sequence[str]
    ) -> ReservedNames:
        """The names of a service with this SPIFFE ID and these names in its certificate.

        Raises:
            MalformedName: One is not a name or address.
        """
        names = (parse_dns_name(text).text for text in dns_names)
        parsed = (parse_ip(text) for text in addresses)
        return cls(
            frozenset(name for name in names if name not in _LOCAL),
            frozenset(address for address in parsed if not address.is_loopback),
            spiffe_id,
        )

    def check(self, common_name: str, sans: Sequence[x509.GeneralName], findings: Findings) -> None:
        """Finds every name that is the service's, also below a wildcard."""
        if self._holds_dns(common_name.lower()):
            findings.outside("names.common_name", _refusal(common_name))
        for name in sans:
            if (
                (isinstance(name, x509.DNSName) and self._holds_dns(name.value))
                or (isinstance(name, x509.IPAddress) and name.value in self.addresses)
                or (
                    isinstance(name, x509.UniformResourceIdentifier)
                    and self.spiffe_id is not None
                    and name.value == str(self.spiffe_id)
                )
            ):
                findings.outside("names", _refusal(str(name.value)))

    def _holds_dns(self, name: str) -> bool:
        if name.startswith("*."):
            return any(own.partition(".")[2] == name[2:] for own in self.dns_names)
        return name in self.dns_names


def _refusal(name: str) -> str:
    return f"{name} is this service's own name, which no role grants"
