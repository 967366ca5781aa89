"""SPIFFE identities and trust bundles as values. Pure: no I/O, and no clock."""

from meshmint_server.spiffe.bundle import TrustBundle
from meshmint_server.spiffe.id import InvalidSpiffeId, SpiffeId, TrustDomain
from meshmint_server.spiffe.jwt_key import JwtKey, key_set
from meshmint_server.spiffe.received_bundle import InvalidBundle, ReceivedBundle, parse_bundle

__all__ = [
    "InvalidBundle",
    "InvalidSpiffeId",
    "JwtKey",
    "ReceivedBundle",
    "SpiffeId",
    "TrustBundle",
    "TrustDomain",
    "key_set",
    "parse_bundle",
]
