"""A JWT-SVID as bytes: a JWS in compact serialisation, signed with ES256 (JWT-SVID, section 2).

Spells what was decided and nothing else; whoever signs is elsewhere.
"""

from __future__ import annotations

import base64
import json

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from meshmint_server.policy import JwtSvidDecision

__all__ = ["assemble", "raw_signature", "to_be_signed"]

_COORDINATE_BYTES = 32  # of P-256


def to_be_signed(
    decision: JwtSvidDecision, *, key_id: str, jwt_id: str, issuer: str | None
) -> bytes:
    """Header and claims: what the signature is over (RFC 7515 section 5.1).

    Args:
        decision: What was granted.
        key_id: ``kid`` of the key that will sign.
        jwt_id: ``jti`` of this token, and of no other.
        issuer: ``iss``, if the service has one.
    """
    header = {"alg": "ES256", "kid": key_id, "typ": "JWT"}
    claims: dict[str, object] = {
        "sub": str(decision.spiffe_id),
        "aud": list(decision.audiences),
        "exp": int(decision.expires_at.timestamp()),
        "iat": int(decision.dated.timestamp()),
        "jti": jwt_id,
    }
    if issuer is not None:
        claims["iss"] = issuer
    return _part(header) + b"." + _part(claims)


def assemble(data: bytes, signature: bytes) -> str:
    """The token.

    Args:
        data: What was signed.
        signature: ECDSA on P-256, DER.
    """
    return (data + b"." + _base64url(raw_signature(signature))).decode("ascii")


def raw_signature(der: bytes) -> bytes:
    """An ECDSA signature on P-256 as JWS has it: r and s, each of 32 bytes (RFC 7518 section 3.4).

    Raises:
        ValueError: It is no such signature.
    """
    r, s = decode_dss_signature(der)
    if not (0 < r < 1 << 8 * _COORDINATE_BYTES and 0 < s < 1 << 8 * _COORDINATE_BYTES):
        raise ValueError("r and s are numbers of at most 32 bytes")
    return r.to_bytes(_COORDINATE_BYTES, "big") + s.to_bytes(_COORDINATE_BYTES, "big")


def _part(members: dict[str, object] | dict[str, str]) -> bytes:
    return _base64url(json.dumps(members, separators=(",", ":")).encode("ascii"))


def _base64url(octets: bytes) -> bytes:
    return base64.urlsafe_b64encode(octets).rstrip(b"=")
