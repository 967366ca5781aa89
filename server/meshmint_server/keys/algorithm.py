"""Kinds of signing key, and how each signs.

Values only: what a key of some kind may sign with is decided here once, and
issuance, authority and every key use the same answer. Nothing here signs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final, Literal, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from meshmint_server.errors import InvalidRequest

__all__ = [
    "KeyAlgorithmName",
    "PublicKey",
    "Scheme",
    "SignatureAlgorithm",
    "default_algorithm",
    "key_algorithm_of",
    "load_public_key",
    "public_key_info",
]

PublicKey: TypeAlias = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
Hash: TypeAlias = hashes.SHA256 | hashes.SHA384 | hashes.SHA512
Padding: TypeAlias = padding.PKCS1v15 | padding.PSS
HashName: TypeAlias = Literal["sha256", "sha384", "sha512"]

_HASHES: Final[dict[HashName, type[Hash]]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
_HASH_OF_BITS: Final[dict[int, HashName]] = {256: "sha256", 384: "sha384", 512: "sha512"}
# RFC 5758 section 3.2 and Vault: the hash fits the curve.
_HASH_OF_CURVE: Final[dict[str, HashName]] = {
    "secp256r1": "sha256",
    "secp384r1": "sha384",
    "secp521r1": "sha512",
}


class KeyAlgorithmName(StrEnum):
    """The kinds of key that an issuer may have."""

    EC_P256 = "ec-p256"
    EC_P384 = "ec-p384"
    EC_P521 = "ec-p521"
    RSA_2048 = "rsa-2048"
    RSA_3072 = "rsa-3072"
    RSA_4096 = "rsa-4096"
    ED25519 = "ed25519"

    @property
    def curve(self) -> ec.EllipticCurve | None:
        """The NIST curve; None for other kinds."""
        return _CURVES.get(self)

    @property
    def rsa_bits(self) -> int | None:
        """The modulus size; None for other kinds."""
        return int(self.removeprefix("rsa-")) if self.startswith("rsa-") else None


_CURVES: Final[dict[KeyAlgorithmName, ec.EllipticCurve]] = {
    KeyAlgorithmName.EC_P256: ec.SECP256R1(),
    KeyAlgorithmName.EC_P384: ec.SECP384R1(),
    KeyAlgorithmName.EC_P521: ec.SECP521R1(),
}


class Scheme(StrEnum):
    """The signature scheme, apart from its hash."""

    RSA_PKCS1 = "rsa-pkcs1"
    RSA_PSS = "rsa-pss"
    ECDSA = "ecdsa"
    ED25519 = "ed25519"


@dataclass(frozen=True)
class SignatureAlgorithm:
    """How to sign: scheme and hash. Ed25519 has no hash of its own choosing."""

    scheme: Scheme
    hash_name: HashName | None

    def __post_init__(self) -> None:
        if (self.scheme is Scheme.ED25519) != (self.hash_name is None):
            raise ValueError(f"{self.scheme} does not go with hash {self.hash_name}")

    @cached_property
    def hash(self) -> Hash | None:
        """The hash as cryptography's builders take it."""
        return None if self.hash_name is None else _HASHES[self.hash_name]()

    @cached_property
    def rsa_padding(self) -> Padding | None:
        """The padding as cryptography's builders take it; None for keys other than RSA.

        PSS: MGF1 with the same hash, and a salt as long as the digest (RFC 4055 section 3.1,
        CA/Browser Forum Baseline Requirements 7.1.3.2).
        """
        if self.hash is not None and self.scheme is Scheme.RSA_PSS:
            return padding.PSS(padding.MGF1(self.hash), self.hash.digest_size)
        return padding.PKCS1v15() if self.scheme is Scheme.RSA_PKCS1 else None

    @cached_property
    def _ecdsa(self) -> ec.ECDSA:
        if self.hash is None:
            raise ValueError("ECDSA signs a digest")
        return ec.ECDSA(self.hash)

    def digest(self, data: bytes) -> bytes:
        """Hash the data for a scheme that signs digests."""
        if self.hash is None:
            raise ValueError("Ed25519 signs the data itself")
        context = hashes.Hash(self.hash)
        context.update(data)
        return context.finalize()

    def is_valid(self, public_key: PublicKey, signature: bytes, data: bytes) -> bool:
        """Whether the signature over the data holds for this public key."""
        try:
            if isinstance(public_key, ed25519.Ed25519PublicKey):
                if self.scheme is not Scheme.ED25519:
                    return False
                public_key.verify(signature, data)
                return True
            if self.hash is None:
                return False
            if isinstance(public_key, ec.EllipticCurvePublicKey):
                if self.scheme is not Scheme.ECDSA:
                    return False
                public_key.verify(signature, data, self._ecdsa)
                return True
            if self.rsa_padding is None:
                return False
            public_key.verify(signature, data, self.rsa_padding, self.hash)
        except InvalidSignature:
            return False
        return True

    @cached_property
    def name(self) -> str:
        """Scheme and hash, such as ``ecdsa-sha256``."""
        return str(self)

    def __str__(self) -> str:
        return str(self.scheme) if self.hash_name is None else f"{self.scheme}-{self.hash_name}"


@lru_cache(maxsize=64)
def _algorithm(scheme: Scheme, hash_name: HashName | None) -> SignatureAlgorithm:
    """The same object each time, with what it has worked out already."""
    return SignatureAlgorithm(scheme, hash_name)


def default_algorithm(
    public_key: PublicKey, signature_bits: int = 0, use_pss: bool = False
) -> SignatureAlgorithm:
    """How this key signs.

    Args:
        public_key: The signing key's public half.
        signature_bits: 256, 384 or 512 for RSA; 0 for SHA-256. As in Vault, other
            kinds of key do not follow it: a curve has its own hash.
        use_pss: RSA-PSS instead of PKCS#1 v1.5. Other kinds of key do not follow it.

    Raises:
        InvalidRequest: The key or the number of bits is not supported.
    """
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return _algorithm(Scheme.ED25519, None)
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        name = _HASH_OF_CURVE.get(public_key.curve.name)
        if name is None:
            raise InvalidRequest(f"Keys on the curve {public_key.curve.name} are not supported.")
        return _algorithm(Scheme.ECDSA, name)
    bits = _HASH_OF_BITS.get(signature_bits or 256)
    if bits is None:
        raise InvalidRequest("signature_bits is 0, 256, 384 or 512.")
    return _algorithm(Scheme.RSA_PSS if use_pss else Scheme.RSA_PKCS1, bits)


def key_algorithm_of(public_key: PublicKey) -> KeyAlgorithmName:
    """The kind of a public key.

    Raises:
        InvalidRequest: An issuer cannot have such a key.
    """
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return KeyAlgorithmName.ED25519
    if isinstance(public_key, rsa.RSAPublicKey):
        name = f"rsa-{public_key.key_size}"
        if name in KeyAlgorithmName.__members__.values():
            return KeyAlgorithmName(name)
        raise InvalidRequest(
            f"A signing key of RSA {public_key.key_size} bits is not supported: "
            "2048, 3072 and 4096 are."
        )
    for kind, curve in _CURVES.items():
        if curve.name == public_key.curve.name:
            return kind
    raise InvalidRequest(f"Keys on the curve {public_key.curve.name} are not supported.")


def load_public_key(der: bytes) -> PublicKey:
    """Read a SubjectPublicKeyInfo (RFC 5280 section 4.1.2.7).

    Raises:
        InvalidRequest: Malformed, or a kind of key that an issuer cannot have.
    """
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidRequest("The public key is not a DER SubjectPublicKeyInfo.") from None
    if not isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise InvalidRequest("A signing key is RSA, EC or Ed25519.")
    key_algorithm_of(key)
    return key


def public_key_info(public_key: PublicKey) -> bytes:
    """The public key as SubjectPublicKeyInfo, DER."""
    return public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
