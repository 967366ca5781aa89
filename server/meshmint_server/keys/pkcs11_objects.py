"""Keys as objects in a PKCS#11 token: find, read, sign.

Functions over an open session. They run only on the thread that owns the
module, never keep a session, and let PKCS#11 errors through: what to do about
a broken session is decided by the caller.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import MGF, Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from meshmint_server.keys.algorithm import (
    PublicKey,
    Scheme,
    SignatureAlgorithm,
    public_key_info,
)
from meshmint_server.keys.key import KeyAttributes, KeyFault
from meshmint_server.keys.uri import ObjectType, Pkcs11Uri

__all__ = [
    "ED25519_PARAMS",
    "OTHER_USES",
    "decode_public_key",
    "describe",
    "find_private_key",
    "key_uri",
    "read_attribute",
    "read_attributes",
    "read_public_key",
    "search",
    "sign_with",
]

ED25519_PARAMS: Final = encode_named_curve_parameters("1.3.101.112")
# Some tokens name the curve instead (PKCS#11 3.0 section 2.3.3): PrintableString "edwards25519".
_ED25519_NAMED: Final = b"\x13\x0cedwards25519"
_CURVES: Final[dict[bytes, ec.EllipticCurve]] = {
    encode_named_curve_parameters(curve.name): curve
    for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())
}
_RSA_MECHANISMS: Final = {
    (Scheme.RSA_PKCS1, "sha256"): Mechanism.SHA256_RSA_PKCS,
    (Scheme.RSA_PKCS1, "sha384"): Mechanism.SHA384_RSA_PKCS,
    (Scheme.RSA_PKCS1, "sha512"): Mechanism.SHA512_RSA_PKCS,
    (Scheme.RSA_PSS, "sha256"): Mechanism.SHA256_RSA_PKCS_PSS,
    (Scheme.RSA_PSS, "sha384"): Mechanism.SHA384_RSA_PKCS_PSS,
    (Scheme.RSA_PSS, "sha512"): Mechanism.SHA512_RSA_PKCS_PSS,
}
_PSS_HASHES: Final = {
    "sha256": (Mechanism.SHA256, MGF.SHA256, 32),
    "sha384": (Mechanism.SHA384, MGF.SHA384, 48),
    "sha512": (Mechanism.SHA512, MGF.SHA512, 64),
}
# RFC 8017 section 9.2, note 1: what precedes the digest in a DigestInfo.
_DIGEST_INFO: Final = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
OTHER_USES: Final = {
    Attribute.DECRYPT: "decrypt",
    Attribute.UNWRAP: "unwrap",
    Attribute.DERIVE: "derive",
    Attribute.SIGN_RECOVER: "sign-recover",
}
_UNREADABLE: Final = (
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeSensitive,
    pkcs11.FunctionFailed,
)
_SIGNATURE_BUFFER: Final = 512


def describe(error: pkcs11.PKCS11Error) -> str:
    """A PKCS#11 error in words. The library's own text may come with unmapped codes only."""
    name = type(error).__name__
    return str(error) if type(error) is pkcs11.PKCS11Error else name


def search(session: pkcs11.Session, wanted: dict[Attribute, Any]) -> list[Any]:
    """All objects with these attributes."""
    # python-pkcs11 leaves a search that could not begin to the garbage collector, which then
    # complains on standard error: let a dead session show itself before that.
    with suppress(pkcs11.RandomNoRNG, pkcs11.FunctionNotSupported):
        session.generate_random(64)
    # Read to the end: an unfinished search would be ended by the garbage collector too, on
    # whatever thread that runs.
    return list(session.get_objects(wanted))


def find_private_key(session: pkcs11.Session, uri: Pkcs11Uri) -> Any:
    """The one private key that a key URI names.

    Raises:
        KeyFault: There is none, or more than one.
    """
    wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if uri.id is not None:
        wanted[Attribute.ID] = uri.id
    if uri.object is not None:
        wanted[Attribute.LABEL] = uri.object
    found = search(session, wanted)
    if not found:
        raise KeyFault(
            f"The token has no private key {uri}. Check the token, the key's id and label, "
            "and that the PIN is the one of the key's owner.",
            reason="KEY_NOT_FOUND",
        )
    if len(found) > 1:
        raise KeyFault(
            f"The token has {len(found)} private keys that match {uri}. Name one by its id: "
            "'id=%01%02…'.",
            reason="KEY_AMBIGUOUS",
        )
    return found[0]


def read_public_key(session: pkcs11.Session, private_key: Any) -> PublicKey | None:
    """The public half as the token tells it; None if it does not.

    Raises:
        KeyFault: It is of a kind that cannot be used.
    """
    wanted: dict[Attribute, Any] = {Attribute.CLASS: ObjectClass.PUBLIC_KEY}
    key_id = read_attribute(private_key, Attribute.ID)
    label = read_attribute(private_key, Attribute.LABEL)
    if key_id:
        wanted[Attribute.ID] = key_id
    elif label:
        wanted[Attribute.LABEL] = label
    else:
        return decode_public_key(private_key)
    found = search(session, wanted)
    decoded = {public_key_info(key): key for item in found if (key := decode_public_key(item))}
    if len(decoded) == 1:
        return next(iter(decoded.values()))
    # None, or several under one id: the private object may know for itself.
    return decode_public_key(private_key)


def decode_public_key(item: Any) -> PublicKey | None:
    kind = read_attribute(item, Attribute.KEY_TYPE)
    if kind is KeyType.RSA:
        modulus = read_attribute(item, Attribute.MODULUS)
        exponent = read_attribute(item, Attribute.PUBLIC_EXPONENT)
        if not modulus or not exponent:
            return None
        numbers = rsa.RSAPublicNumbers(
            int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")
        )
        return numbers.public_key()
    if kind not in (KeyType.EC, KeyType.EC_EDWARDS):
        raise KeyFault("A signing key is RSA, EC or Ed25519.", reason="KEY_UNSUPPORTED")
    params = read_attribute(item, Attribute.EC_PARAMS)
    point = read_attribute(item, Attribute.EC_POINT)
    if not params or not point:
        return None
    if params in (ED25519_PARAMS, _ED25519_NAMED):
        return ed25519.Ed25519PublicKey.from_public_bytes(point[-32:])
    curve = _CURVES.get(params)
    if curve is None:
        raise KeyFault(
            "The key is on a curve other than P-256, P-384 and P-521.", reason="KEY_UNSUPPORTED"
        )
    # The point comes as an OCTET STRING (PKCS#11 section 2.3.3); some tokens leave that out.
    size = 1 + 2 * ((curve.key_size + 7) // 8)
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, point[-size:])


def key_uri(token: Any, private_key: Any) -> Pkcs11Uri:
    """The full key URI of a private key: token, label and id."""
    return Pkcs11Uri(
        token=token.label or None,
        object=read_attribute(private_key, Attribute.LABEL) or None,
        id=read_attribute(private_key, Attribute.ID) or None,
        type=ObjectType.PRIVATE,
    )


def read_attributes(token: Any, private_key: Any) -> KeyAttributes:
    """How the token holds a private key."""
    never = read_attribute(private_key, Attribute.NEVER_EXTRACTABLE)
    other = tuple(name for flag, name in OTHER_USES.items() if read_attribute(private_key, flag))
    return KeyAttributes(
        storage="pkcs11",
        token=f"{token.label} ({token.model}, serial {token.serial.decode('utf-8', 'replace')})",
        is_extractable=read_attribute(private_key, Attribute.EXTRACTABLE),
        was_ever_extractable=None if never is None else not never,
        is_sensitive=read_attribute(private_key, Attribute.SENSITIVE),
        is_local=read_attribute(private_key, Attribute.LOCAL),
        is_sign_only=bool(read_attribute(private_key, Attribute.SIGN)) and not other,
        other_uses=other,
    )


def sign_with(
    private_key: Any, data: bytes, algorithm: SignatureAlgorithm, public_key: PublicKey
) -> bytes:
    """Sign with a private key object.

    Raises:
        KeyFault: The token gave back nothing, or not a signature of this kind.
    """
    if not hasattr(private_key, "sign"):
        # python-pkcs11 gives the object a sign() only if CKA_SIGN is true.
        raise KeyFault("The key may not sign (CKA_SIGN is false).", reason="KEY_UNFIT")
    mechanism, argument, message = _operation(algorithm, data)
    options: dict[str, Any] = {"mechanism": mechanism, "buffer_size": _SIGNATURE_BUFFER}
    if argument is not None:
        options["mechanism_param"] = argument
    try:
        raw = private_key.sign(message, **options)
    except pkcs11.MechanismInvalid:
        if isinstance(public_key, rsa.RSAPublicKey):
            # The token does not hash and sign in one; it may still sign a digest.
            mechanism, argument, message = _raw_rsa_operation(algorithm, data)
            raw = private_key.sign(message, mechanism=mechanism, mechanism_param=argument)
        else:
            raise
    if len(raw) != _signature_size(public_key):
        raise KeyFault(
            f"The token gave a signature of {len(raw)} bytes where "
            f"{_signature_size(public_key)} were expected."
        )
    if algorithm.scheme is Scheme.ECDSA:
        half = len(raw) // 2
        return encode_dss_signature(
            int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        )
    return bytes(raw)


def _operation(algorithm: SignatureAlgorithm, data: bytes) -> tuple[Mechanism, Any, bytes]:
    if algorithm.scheme is Scheme.ECDSA:
        return Mechanism.ECDSA, None, algorithm.digest(data)
    if algorithm.hash_name is None:
        return Mechanism.EDDSA, None, data
    mechanism = _RSA_MECHANISMS[algorithm.scheme, algorithm.hash_name]
    if algorithm.scheme is Scheme.RSA_PSS:
        return mechanism, _PSS_HASHES[algorithm.hash_name], data
    return mechanism, None, data


def _raw_rsa_operation(algorithm: SignatureAlgorithm, data: bytes) -> tuple[Mechanism, Any, bytes]:
    if algorithm.hash_name is None:
        raise ValueError("RSA without a hash")
    digest = algorithm.digest(data)
    if algorithm.scheme is Scheme.RSA_PSS:
        return Mechanism.RSA_PKCS_PSS, _PSS_HASHES[algorithm.hash_name], digest
    return Mechanism.RSA_PKCS, None, _DIGEST_INFO[algorithm.hash_name] + digest


def _signature_size(public_key: PublicKey) -> int:
    if isinstance(public_key, ed25519.Ed25519PublicKey):
        return 64
    octets = (public_key.key_size + 7) // 8
    return 2 * octets if isinstance(public_key, ec.EllipticCurvePublicKey) else octets


def read_attribute(item: Any, attribute: Attribute) -> Any:
    try:
        return item[attribute]
    except _UNREADABLE:
        return None
    except ValueError:
        # A vendor's value that python-pkcs11 has no name for.
        return None
