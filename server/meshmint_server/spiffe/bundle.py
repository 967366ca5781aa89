"""A trust bundle as a value, and its document (SPIFFE Trust Domain and Bundle, section 4).

It holds the roots of one trust domain and of no other: bundles are never merged.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from meshmint_server.spiffe.id import TrustDomain

__all__ = ["TrustBundle", "key_parameters"]

# RFC 7518 section 6.2.1.1, by the names that cryptography gives them.
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


@dataclass(frozen=True)
class TrustBundle:
    """What to trust in one trust domain.

    Attributes:
        trust_domain: The trust domain.
        roots: Root certificates, DER, in an order that is the same everywhere.
        sequence: Grows whenever the set of roots changes (section 4.1.2).
        refresh_hint: How often consumers should look again (section 4.1.3).
    """

    trust_domain: TrustDomain
    roots: tuple[bytes, ...]
    sequence: int
    refresh_hint: timedelta

    @cached_property
    def roots_pem(self) -> tuple[str, ...]:
        """The roots, PEM."""
        return tuple(
            x509.load_der_x509_certificate(root).public_bytes(Encoding.PEM).decode("ascii")
            for root in self.roots
        )

    @cached_property
    def document(self) -> bytes:
        """The bundle as a JWK Set; the same bytes wherever the bundle is the same.

        Raises:
            ValueError: A root cannot be read, or its key has no form as a JWK.
        """
        members: dict[str, object] = {
            "keys": [_jwk(root) for root in self.roots],
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


def key_parameters(key: object) -> dict[str, str]:
    """A public key as the members of a JWK (RFC 7518 section 6, RFC 8037 section 2).

    Raises:
        ValueError: The key has no form as a JWK.
    """
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        numbers = key.public_numbers()
        # RFC 7518 section 6.2.1.2: always as long as the curve's field.
        size = (key.curve.key_size + 7) // 8
        return {
            "kty": "EC",
            "crv": _CURVES[key.curve.name],
            "x": _base64url(numbers.x.to_bytes(size, "big")),
            "y": _base64url(numbers.y.to_bytes(size, "big")),
        }
    if isinstance(key, rsa.RSAPublicKey):
        public = key.public_numbers()
        return {"kty": "RSA", "n": _base64url_uint(public.n), "e": _base64url_uint(public.e)}
    if isinstance(key, ed25519.Ed25519PublicKey):
        # RFC 8037 section 2.
        return {"kty": "OKP", "crv": "Ed25519", "x": _base64url(key.public_bytes_raw())}
    raise ValueError("the key of a root is neither RSA, Ed25519, nor EC on P-256, P-384 or P-521")


def _base64url_uint(value: int) -> str:
    # RFC 7518 section 2: no leading zero octets.
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _base64url(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")
