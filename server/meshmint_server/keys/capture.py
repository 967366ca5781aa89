"""To-be-signed bytes, had from cryptography's builders without signing.

A builder signs with whatever implements its private-key interface. Here it gets
a key that only keeps what it was asked to sign, so that the real signature can
be made elsewhere and later, on the key's own thread. A capturing key holds no
secret; what it "signs" must never leave this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshmint_server.keys.algorithm import Hash, Padding, PublicKey, SignatureAlgorithm

__all__ = ["Build", "CapturingKey", "ToBeSigned", "capture", "der_length"]

Signed: TypeAlias = (
    x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList
)
_DUMMY = b"\x00"


class ToBeSigned(NamedTuple):
    """What a signature is needed for (RFC 5280 section 4.1.1, RFC 2986 section 4.2).

    Attributes:
        data: DER of the TBSCertificate, TBSCertList or CertificationRequestInfo.
        algorithm_identifier: DER of the AlgorithmIdentifier.
    """

    data: bytes
    algorithm_identifier: bytes

    def assemble(self, signature: bytes) -> bytes:
        """The finished object, DER: SEQUENCE {data, algorithmIdentifier, BIT STRING}.

        Raises:
            ValueError: The signature is empty.
        """
        if not signature:
            raise ValueError("an empty signature")
        bits = b"\x03" + der_length(len(signature) + 1) + b"\x00" + signature
        size = len(self.data) + len(self.algorithm_identifier) + len(bits)
        return b"".join((b"\x30", der_length(size), self.data, self.algorithm_identifier, bits))


class _Capture:
    """The half that all capturing keys share."""

    data: bytes | None = None

    def _keep(self, data: object) -> bytes:
        self.data = bytes(data)  # type: ignore[call-overload]
        return _DUMMY

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise TypeError("a capturing key has no private part")

    def __copy__(self) -> NoReturn:
        self._refuse()

    def __deepcopy__(self, _memo: object) -> NoReturn:
        self._refuse()


class _EcCapture(_Capture, ec.EllipticCurvePrivateKey):
    def __init__(self, public_key: ec.EllipticCurvePublicKey) -> None:
        self._public_key = public_key

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._public_key

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._public_key.curve

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, data: object, _signature_algorithm: object = None) -> bytes:
        return self._keep(data)

    exchange = private_bytes = private_numbers = _Capture._refuse


class _RsaCapture(_Capture, rsa.RSAPrivateKey):
    def __init__(self, public_key: rsa.RSAPublicKey) -> None:
        self._public_key = public_key

    def public_key(self) -> rsa.RSAPublicKey:
        return self._public_key

    @property
    def key_size(self) -> int:
        return self._public_key.key_size

    def sign(self, data: object, _padding: object = None, _algorithm: object = None) -> bytes:
        return self._keep(data)

    decrypt = private_bytes = private_numbers = _Capture._refuse


class _Ed25519Capture(_Capture, ed25519.Ed25519PrivateKey):
    def __init__(self, public_key: ed25519.Ed25519PublicKey) -> None:
        self._public_key = public_key

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return self._public_key

    def sign(self, data: object) -> bytes:
        return self._keep(data)

    private_bytes = private_bytes_raw = _Capture._refuse


CapturingKey: TypeAlias = _EcCapture | _RsaCapture | _Ed25519Capture
Build: TypeAlias = Callable[[CapturingKey, Hash | None, Padding | None], Signed]


def capture(build: Build, public_key: PublicKey, algorithm: SignatureAlgorithm) -> ToBeSigned:
    """Run a builder's ``sign`` with a key that signs nothing, and keep what it would sign.

    Args:
        build: Calls ``builder.sign(private_key, hash, rsa_padding=padding)``.
        public_key: The key that will really sign.
        algorithm: How it will sign.

    Raises:
        ValueError: The builder refused, or did not sign with the key it was given.
    """
    key: CapturingKey
    if isinstance(public_key, ec.EllipticCurvePublicKey):
        key = _EcCapture(public_key)
    elif isinstance(public_key, rsa.RSAPublicKey):
        key = _RsaCapture(public_key)
    else:
        key = _Ed25519Capture(public_key)
    shell = build(key, algorithm.hash, algorithm.rsa_padding)
    data = key.data
    if data is None:
        raise ValueError("the builder did not sign with the capturing key")
    der = shell.public_bytes(serialization.Encoding.DER)
    # Outer header, then the captured bytes, the AlgorithmIdentifier, and the BIT STRING
    # with the dummy: tag, length, unused bits, one byte.
    tail = b"\x03\x02\x00" + _DUMMY
    start = _header_size(der) + len(data)
    if der[start - len(data) : start] != data or not der.endswith(tail):
        raise ValueError("the builder encoded something else than it signed")
    return ToBeSigned(data=data, algorithm_identifier=der[start : -len(tail)])


def _header_size(der: bytes) -> int:
    """Size of tag and length of the outermost element (X.690 section 8.1.3)."""
    return 2 if der[1] < 0x80 else 2 + (der[1] & 0x7F)


def der_length(size: int) -> bytes:
    """Length octets of a DER element (X.690 section 10.1)."""
    if size < 0x80:
        return bytes((size,))
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((0x80 | len(octets),)) + octets
