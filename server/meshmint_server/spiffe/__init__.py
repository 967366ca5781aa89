"""SPIFFE identities as values. Pure: no I/O, and nothing of X.509."""

from meshmint_server.spiffe.id import InvalidSpiffeId, SpiffeId, TrustDomain

__all__ = ["InvalidSpiffeId", "SpiffeId", "TrustDomain"]
