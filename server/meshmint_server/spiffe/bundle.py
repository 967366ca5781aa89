"""A trust bundle as a value, and its document (SPIFFE Trust Domain and Bundle, section 4).

It holds the roots and keys of one trust domain and of no other: bundles are never merged.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server.spiffe.id import TrustDomain
from meshmint_server.spiffe.jwt_key import JwtKey, key_set
from meshmint_server.spiffe.key_parameters import key_parameters

__all__ = ["TrustBundle"]


@dataclass(frozen=True)
class TrustBundle:
    """What to trust in one trust domain.

    Attributes:
        trust_domain: The trust domain.
        roots: Root certificates, DER, in an order that is the same everywhere.
        sequence: Grows whenever the set of roots or keys changes (section 4.1.2).
        refresh_hint: How often consumers should look again (section 4.1.3).
        jwt_keys: The keys that verify JWT-SVIDs, in an order that is the same everywhere.
    """

    trust_domain: TrustDomain
    roots: tuple[bytes, ...]
    sequence: int
    refresh_hint: timedelta
    jwt_keys: tuple[JwtKey, ...] = ()

    @cached_property
    def roots_pem(self) -> tuple[str, ...]:
        """The roots, PEM."""
        return tuple(
            x509.load_der_x509_certificate(root).public_bytes(Encoding.PEM).decode("ascii")
            for root in self.roots
        )

    @cached_property
    def jwt_key_set(self) -> str:
        """The keys for JWT-SVIDs alone, as a JWK set."""
        return key_set(self.jwt_keys, "jwt-svid")

    @cached_property
    def document(self) -> bytes:
        """The bundle as a JWK Set; the same bytes wherever the bundle is the same.

        Raises:
            ValueError: A root cannot be read, or its key has no form as a JWK.
        """
        members: dict[str, object] = {
            "keys": [
                *(_jwk(root) for root in self.roots),
                *(key.jwk("jwt-svid") for key in self.jwt_keys),
            ],
            "spiffe_sequence": self.sequence,
            "spiffe_refresh_hint": int(self.refresh_hint.total_seconds()),
        }
        return json.dumps(members, separators=(",", ":")).encode("ascii")


def _jwk(root: bytes) -> dict[str, object]:
    """One entry (section 4.2.2): no `kid`, and exactly one certificate in `x5c`."""
    key = x509.load_der_x509_certificate(root).public_key()
    return {
        "use": "x509-svid",
        **key_parameters(key),
        # RFC 7517 section 4.7: standard base64, where all else is base64url.
        "x5c": [base64.b64encode(root).decode("ascii")],
    }
