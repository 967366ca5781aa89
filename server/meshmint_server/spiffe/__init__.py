"""SPIFFE identities and trust bundles as values. Pure: no I/O, and no clock."""

from meshmint_server.spiffe.bundle import TrustBundle
from meshmint_server.spiffe.id import InvalidSpiffeId, SpiffeId, TrustDomain

__all__ = ["InvalidSpiffeId", "SpiffeId", "TrustBundle", "TrustDomain"]
