"""A public key that verifies JWT-SVIDs, as the JWK of a trust bundle has it.

Only public halves, of the kinds whose algorithms the JWT-SVID standard allows (section
3.1): RSA, and EC on P-256, P-384 and P-521.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
)

from meshmint_server.spiffe.key_parameters import key_parameters

__all__ = ["InvalidJwk", "JwtKey", "key_set", "parse_jwt_key"]

_CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_ID = 255
_RSA_BITS = range(2048, 8192 + 1)


class InvalidJwk(ValueError):
    """An entry cannot be what it claims to be; the message says why, and quotes nothing of it."""


@dataclass(frozen=True)
class JwtKey:
    """One key.

    Attributes:
        key_id: Its ``kid``, by which tokens name it.
        public_key: SubjectPublicKeyInfo, DER.
    """

    key_id: str
    public_key: bytes

    @cached_property
    def _parameters(self) -> dict[str, str]:
        return key_parameters(load_der_public_key(self.public_key))

    def jwk(self, use: Literal["jwt-svid", "sig"]) -> dict[str, str]:
        """The key as a JWK (RFC 7517).

        Args:
            use: ``jwt-svid`` in a trust bundle (SPIFFE Trust Domain and Bundle, section
                4.2.2). ``sig`` for verifiers that know OpenID Connect and not SPIFFE: they
                look for that use alone, and are told the algorithm, too.
        """
        found = {"use": use, "kid": self.key_id, **self._parameters}
        if use == "sig" and found["kty"] == "EC":
            found["alg"] = _ALGORITHMS[found["crv"]]
        return found


def key_set(keys: Iterable[JwtKey], use: Literal["jwt-svid", "sig"]) -> str:
    """A JWK set; the same text wherever the keys are the same."""
    return json.dumps({"keys": [key.jwk(use) for key in keys]}, separators=(",", ":"))


def parse_jwt_key(jwk: Mapping[str, Any]) -> JwtKey | None:
    """Reads an entry of a trust bundle whose use is ``jwt-svid``.

    Returns:
        The key; None if it is of a kind that is not known here, which is to be ignored.

    Raises:
        InvalidJwk: It is of a known kind and cannot be used.
    """
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if kind == "EC" and isinstance(curve, str) and curve in _CURVES:
        key = _ec(jwk, _CURVES[curve])
    elif kind == "RSA":
        key = _rsa(jwk)
    else:
        return None
    key_id = jwk.get("kid")
    # Section 4.2.2: it must be there.
    if not isinstance(key_id, str) or not 1 <= len(key_id) <= _LONGEST_ID:
        raise InvalidJwk("an entry for jwt-svid has no 'kid' that can be used")
    if not key_id.isprintable():
        raise InvalidJwk("the 'kid' of an entry for jwt-svid has control characters")
    if "d" in jwk:
        raise InvalidJwk("an entry for jwt-svid has a private key in it")
    return JwtKey(key_id, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _ec(jwk: Mapping[str, Any], curve: ec.EllipticCurve) -> ec.EllipticCurvePublicKey:
    size = (curve.key_size + 7) // 8
    numbers = ec.EllipticCurvePublicNumbers(
        _number(jwk, "x", size, size), _number(jwk, "y", size, size), curve
    )
    try:
        return numbers.public_key()
    except ValueError:
        raise InvalidJwk("the key of an entry for jwt-svid is not on its curve") from None


def _rsa(jwk: Mapping[str, Any]) -> rsa.RSAPublicKey:
    modulus = _number(jwk, "n", 1, _RSA_BITS.stop // 8)
    exponent = _number(jwk, "e", 1, 4)
    if modulus.bit_length() not in _RSA_BITS:
        raise InvalidJwk(
            f"an RSA key for jwt-svid has from {_RSA_BITS.start} to {_RSA_BITS.stop - 1} bits"
        )
    try:
        return rsa.RSAPublicNumbers(exponent, modulus).public_key()
    except ValueError:
        raise InvalidJwk("the RSA key of an entry for jwt-svid cannot be used") from None


def _number(jwk: Mapping[str, Any], name: str, least: int, most: int) -> int:
    """A number of so many bytes, base64url without padding (RFC 7518 section 2)."""
    text = jwk.get(name)
    if not isinstance(text, str) or len(text) > 2 * most or not _BASE64URL.fullmatch(text):
        raise InvalidJwk(f"the '{name}' of an entry for jwt-svid cannot be read")
    try:
        octets = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise InvalidJwk(f"the '{name}' of an entry for jwt-svid cannot be read") from None
    if not least <= len(octets) <= most:
        raise InvalidJwk(f"the '{name}' of an entry for jwt-svid is too short or too long")
    return int.from_bytes(octets, "big")
