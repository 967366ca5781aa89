"""Public keys as the members of a JWK."""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

__all__ = ["key_parameters"]

# RFC 7518 section 6.2.1.1, by the names that cryptography gives them.
_CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


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
