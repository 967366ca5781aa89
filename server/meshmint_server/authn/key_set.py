"""The public keys that tokens are verified with: JWK sets and PEM.

Only asymmetric keys get in, each with the algorithms that fit it, so that a key
can never be used with another kind of algorithm than its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import (
    Algorithm,
    ECAlgorithm,
    OKPAlgorithm,
    RSAAlgorithm,
    get_default_algorithms,
)
from jwt.exceptions import PyJWTError

from meshmint_server.authn.token import Json, parse_json_object

__all__ = ["ALGORITHMS", "InvalidKeys", "KeySet", "VerificationKey", "parse_jwks", "parse_pem"]

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
MAX_KEYS = 100

_RSA_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
# RFC 7518 section 3.4 binds each ES algorithm to one curve.
_EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}

_Key = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

ALGORITHMS: dict[str, Algorithm] = {
    name: algorithm
    for name, algorithm in get_default_algorithms().items()
    if name in _RSA_ALGORITHMS | set(_EC_ALGORITHMS.values()) | {"EdDSA"}
}

_PARSERS: dict[str, Callable[[dict[str, str]], object]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


class InvalidKeys(ValueError):
    """The text holds no keys that tokens could be verified with; says why."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """One public key.

    Attributes:
        kid: Its id within the set; None if it has none.
        algorithms: The algorithms it may be used with.
        key: The key, parsed.
    """

    kid: str | None
    algorithms: frozenset[str]
    key: _Key

    def verifies(self, signature: bytes, data: bytes, algorithm: str) -> bool:
        """Whether the signature is this key's. The algorithm must be one of its own."""
        return algorithm in self.algorithms and ALGORITHMS[algorithm].verify(
            data, self.key, signature
        )


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """The keys of one issuer at one time. Compared by identity: a new set is a new object.

    Attributes:
        keys: The keys that can be used.
        skipped: What was left out, and why, for the log.
    """

    keys: tuple[VerificationKey, ...]
    skipped: tuple[str, ...] = ()

    def has_keys_of(self, other: KeySet) -> bool:
        """Whether the other set has the same keys, in whatever order or spelling."""
        return len(self.keys) == len(other.keys) and all(key in other.keys for key in self.keys)

    def candidates(self, kid: str | None, algorithm: str) -> tuple[VerificationKey, ...]:
        """The keys that may have signed a token with this header.

        A key without an id may have signed any token; a token without an id
        may be signed by any key (RFC 7515 section 4.1.4: a kid is a hint).
        """
        return tuple(
            key
            for key in self.keys
            if algorithm in key.algorithms and (kid is None or key.kid is None or key.kid == kid)
        )


def parse_jwks(data: bytes) -> KeySet:
    """Parses a JWK set (RFC 7517 section 5). Keys that cannot be used are skipped.

    Raises:
        InvalidKeys: It is not a JWK set, or has over 100 keys.
    """
    try:
        document = parse_json_object(data)
    except ValueError as error:
        raise InvalidKeys(f"not a JWK set: {error}") from error
    entries = document.get("keys")
    if not isinstance(entries, list):
        raise InvalidKeys("not a JWK set: it has no list 'keys'")
    if len(entries) > MAX_KEYS:
        raise InvalidKeys(f"a JWK set of over {MAX_KEYS} keys")
    keys: list[VerificationKey] = []
    skipped: list[str] = []
    for index, entry in enumerate(entries):
        try:
            keys.append(_parse_jwk(entry))
        except InvalidKeys as error:
            skipped.append(f"keys[{index}]: {error}")
    return KeySet(tuple(keys), tuple(skipped))


def parse_pem(documents: Sequence[bytes]) -> KeySet:
    """Parses public keys or certificates in PEM, one or more a document.

    Raises:
        InvalidKeys: There is none, or one that cannot be used.
    """
    keys: list[VerificationKey] = []
    for document in documents:
        blocks = [b"-----BEGIN " + block for block in document.split(b"-----BEGIN ")[1:]]
        if not blocks:
            raise InvalidKeys("no PEM block 'PUBLIC KEY' or 'CERTIFICATE' in it")
        for block in blocks:
            key = _parse_pem_block(block)
            keys.append(VerificationKey(None, _fitting(key), key))
    return KeySet(tuple(keys))


def _parse_pem_block(block: bytes) -> _Key:
    if b"PRIVATE KEY" in block.splitlines()[0]:
        raise InvalidKeys("a private key where a public key is expected")
    key: object
    try:
        if block.startswith(b"-----BEGIN CERTIFICATE-----"):
            key = load_pem_x509_certificate(block).public_key()
        else:
            key = load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKeys("not a public key in PEM") from error
    if not isinstance(key, _Key):
        raise InvalidKeys(f"a key of an unsupported kind, {type(key).__name__}")
    return key


def _parse_jwk(entry: Json) -> VerificationKey:
    if not isinstance(entry, dict):
        raise InvalidKeys("not an object")
    kty, kid, alg = entry.get("kty"), entry.get("kid"), entry.get("alg")
    if not isinstance(kty, str) or kty not in _PARSERS:
        raise InvalidKeys("of another kind than RSA, EC and OKP")
    if "d" in entry:
        raise InvalidKeys("a private key; its issuer must replace it")
    if kid is not None and not isinstance(kid, str):
        raise InvalidKeys("its kid is not a string")
    if entry.get("use", "sig") != "sig":
        raise InvalidKeys("its use is not 'sig'")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise InvalidKeys("its key_ops do not include 'verify'")
    numbers = {
        name: value
        for name in ("kty", "crv", "n", "e", "x", "y")
        if isinstance(value := entry.get(name), str)
    }
    try:
        key = _PARSERS[kty](numbers)
    except (PyJWTError, ValueError, UnsupportedAlgorithm) as error:
        raise InvalidKeys("its numbers do not make a key") from error
    if not isinstance(key, _Key):
        raise InvalidKeys("on an unsupported curve")
    algorithms = _fitting(key)
    if alg is not None:
        if alg not in algorithms:
            raise InvalidKeys(f"its alg does not fit the key, which allows {sorted(algorithms)}")
        algorithms = frozenset({str(alg)})
    return VerificationKey(kid, algorithms, key)


def _fitting(key: _Key) -> frozenset[str]:
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise InvalidKeys(
                f"an RSA key of {key.key_size} bits, outside of {MIN_RSA_BITS} to {MAX_RSA_BITS}"
            )
        return _RSA_ALGORITHMS
    if isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _EC_ALGORITHMS:
            raise InvalidKeys(f"on the curve {key.curve.name}, which no allowed algorithm uses")
        return frozenset({_EC_ALGORITHMS[key.curve.name]})
    return frozenset({"EdDSA"})
