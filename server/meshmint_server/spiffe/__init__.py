"""SPIFFE identities and trust bundles as values. Pure: no I/O, and no clock."""

from meshmint_server.spiffe.bundle import TrustBundle
from meshmint_server.spiffe.id import InvalidSpiffeId, SpiffeId, TrustDomain
from meshmint_server.spiffe.received_bundle import InvalidBundle, ReceivedBundle, parse_bundle

__all__ = [
    "InvalidBundle",
    "InvalidSpiffeId",
    "ReceivedBundle",
    "SpiffeId",
    "TrustBundle",
    "TrustDomain",
    "parse_bundle",
]
