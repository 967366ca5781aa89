"""Whether a JWT-SVID holds (JWT-SVID.md sections 2 to 5).

A token is a stranger's until its signature is checked, with a key of the trust
domain that its subject names and of no other. Everything before that is bounded.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from meshmint.agent.identities import Bundle
from meshmint.agent.sockets.refusals import clean
from meshmint.agent.sockets.spiffe_ids import trust_domain_of

__all__ = ["TokenRefused", "ValidToken", "has_keys", "validate"]

MAX_TOKEN = 16 * 1024
# JWT-SVID.md section 3: these, and no others.
_ALGORITHMS: Mapping[str, type[ec.EllipticCurve] | None] = {
    "RS256": None, "RS384": None, "RS512": None,
    "PS256": None, "PS384": None, "PS512": None,
    "ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1,
}  # fmt: skip
# JWT-SVID.md section 2: others must not be there.
_HEADERS = {"alg", "kid", "typ"}
_TYPES = ("JWT", "JOSE")
_MIN_RSA_BITS = 2048
# What clocks may differ by.
_LEEWAY_SECONDS = 30
# Without a key ID every key that fits is tried.
_MAX_TRIED = 16
_MAX_BUNDLE = 1024 * 1024
# google.protobuf.Struct is read to a depth of 100 by most.
_MAX_DEPTH = 32

_Key = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class TokenRefused(Exception):
    """The token does not hold; the text says why, and has nothing of the token."""


@dataclass(frozen=True, slots=True)
class ValidToken:
    """A token that holds.

    Attributes:
        spiffe_id: Whose it is.
        claims: All that it says.
    """

    spiffe_id: str
    claims: Mapping[str, Any]


def validate(token: str, audience: str, bundles: Mapping[str, Bundle]) -> ValidToken:
    """Checks a token.

    Args:
        token: JWS compact serialisation.
        audience: Who asks; must be among those that the token is for.
        bundles: By trust domain.

    Raises:
        TokenRefused: It does not hold.
    """
    if len(token) > MAX_TOKEN or not token.isascii():
        raise TokenRefused(f"a token has at most {MAX_TOKEN} bytes, all of them ASCII")
    header, subject = _unverified(token)
    algorithm = _algorithm(header)
    trust_domain = trust_domain_of(subject)
    if trust_domain is None:
        raise TokenRefused("its subject (sub) is not the SPIFFE ID of a workload")
    bundle = bundles.get(trust_domain)
    if bundle is None:
        raise TokenRefused(f"no keys of the trust domain {clean(trust_domain)} are known here")
    claims = _verified(token, algorithm, header.get("kid"), audience, bundle)
    _check_depth(claims)
    return ValidToken(subject, claims)


def has_keys(jwk_set: bytes) -> bool:
    """Whether there is any key for JWT-SVIDs in a JWK set."""
    return bool(_keys(jwk_set))


def _unverified(token: str) -> tuple[dict[str, Any], str]:
    """The header, and the subject that says whose keys to look at."""
    try:
        parts = jwt.api_jws.PyJWS().decode_complete(token, options={"verify_signature": False})
        claims = json.loads(parts["payload"])
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise TokenRefused("it is not a JWT in compact serialisation") from None
    header = parts["header"]
    if not isinstance(claims, dict) or not isinstance(claims.get("sub"), str):
        raise TokenRefused("it has no subject (sub)")
    return header, claims["sub"]


def _algorithm(header: Mapping[str, Any]) -> str:
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        raise TokenRefused(f"its algorithm (alg) is none of {', '.join(_ALGORITHMS)}")
    if set(header) - _HEADERS:
        raise TokenRefused("its header has more than alg, kid and typ")
    if "typ" in header and header["typ"] not in _TYPES:
        raise TokenRefused("its type (typ) is neither JWT nor JOSE")
    if "kid" in header and not isinstance(header["kid"], str):
        raise TokenRefused("its key ID (kid) is not text")
    return algorithm


def _verified(
    token: str, algorithm: str, key_id: str | None, audience: str, bundle: Bundle
) -> dict[str, Any]:
    candidates = [
        key
        for name, key in _keys(bundle.jwt_keys)
        if (key_id is None or name == key_id) and _fits(key, algorithm)
    ]
    for key in candidates[:_MAX_TRIED]:
        try:
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "aud", "sub"]},
            )
        except jwt.InvalidSignatureError:
            continue
        except jwt.ExpiredSignatureError:
            raise TokenRefused("it has expired (exp)") from None
        except jwt.InvalidAudienceError:
            raise TokenRefused("it is for another audience (aud)") from None
        except (jwt.ImmatureSignatureError, jwt.InvalidIssuedAtError):
            raise TokenRefused("it is not valid yet (nbf, iat): compare the clocks") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise TokenRefused("its claims are malformed, or exp, aud or sub is missing") from None
    raise TokenRefused(
        f"no key of the trust domain {bundle.trust_domain} that is for JWT-SVIDs has signed it"
    )


def _fits(key: _Key, algorithm: str) -> bool:
    curve = _ALGORITHMS[algorithm]
    if curve is None:
        return isinstance(key, rsa.RSAPublicKey) and key.key_size >= _MIN_RSA_BITS
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, curve)


@functools.lru_cache(maxsize=64)
def _keys(jwk_set: bytes) -> tuple[tuple[str, _Key], ...]:
    """The keys that are for JWT-SVIDs, with their IDs; what is malformed is passed over."""
    try:
        found = json.loads(jwk_set) if len(jwk_set) <= _MAX_BUNDLE else {}
        entries = found["keys"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()
    keys: list[tuple[str, _Key]] = []
    for entry in entries if isinstance(entries, list) else ():
        # SPIFFE_Trust_Domain_and_Bundle.md section 4.2: an unknown use is to be ignored, and
        # JWT-SVID.md section 6: every key has its ID.
        if not isinstance(entry, dict) or entry.get("use") != "jwt-svid":
            continue
        key_id = entry.get("kid")
        if not isinstance(key_id, str) or not key_id:
            continue
        try:
            key = jwt.PyJWK(entry).key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            keys.append((key_id, key))
    return tuple(keys)


def _check_depth(claims: Mapping[str, Any]) -> None:
    level: list[Any] = [claims]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise TokenRefused(f"its claims are nested deeper than {_MAX_DEPTH} levels")
