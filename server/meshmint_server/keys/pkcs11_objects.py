"""Keys as objects in a PKCS#11 token: find, read, generate, sign.

Functions over an open session. They run only on the thread that owns the
module, never keep a session, and let PKCS#11 errors through: what to do about
a broken session is decided by the caller. A key is generated so that it can do
nothing but sign and can never leave the token, or not at all.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import MGF, Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.constants import DEFAULT
from pkcs11.util.ec import encode_named_curve_parameters

from meshmint_server.keys.algorithm import (
    KeyAlgorithmName,
    PublicKey,
    Scheme,
    SignatureAlgorithm,
    public_key_info,
)
from meshmint_server.keys.key import KeyAttributes, KeyFault
from meshmint_server.keys.uri import ObjectType, Pkcs11Uri

__all__ = [
    "Generated",
    "describe",
    "find_private_key",
    "generate_key",
    "key_uri",
    "new_key_id",
    "read_attributes",
    "read_public_key",
    "sign_with",
]

_ED25519_PARAMS: Final = encode_named_curve_parameters("1.3.101.112")
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
_OTHER_USES: Final = {
    Attribute.DECRYPT: "decrypt",
    Attribute.UNWRAP: "unwrap",
    Attribute.DERIVE: "derive",
    Attribute.SIGN_RECOVER: "sign-recover",
}
_GENERATE: Final = {
    "ec": Mechanism.EC_KEY_PAIR_GEN,
    "rsa": Mechanism.RSA_PKCS_KEY_PAIR_GEN,
    "ed25519": Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
}
_PRIVATE_TEMPLATE: Final[dict[Attribute, Any]] = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
}
_PUBLIC_TEMPLATE: Final[dict[Attribute, Any]] = {Attribute.VERIFY: True}
# Not every token takes every attribute in a template (AWS CloudHSM knows no
# CKA_SIGN_RECOVER, and wants CKA_PRIVATE of a public key left alone). So these are asked
# for first, and what the key became is checked afterwards: (private, public) additions,
# the strictest first. DEFAULT leaves out what python-pkcs11 would write.
_NO_OTHER_USE: Final[dict[Attribute, Any]] = {
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
_ADDITIONS: Final[tuple[tuple[dict[Attribute, Any], dict[Attribute, Any]], ...]] = (
    (
        {**_NO_OTHER_USE, Attribute.SIGN_RECOVER: False, Attribute.MODIFIABLE: False},
        {Attribute.PRIVATE: False},
    ),
    ({**_NO_OTHER_USE, Attribute.SIGN_RECOVER: False}, {}),
    (_NO_OTHER_USE, {}),
    (
        dict.fromkeys(_NO_OTHER_USE, DEFAULT),
        dict.fromkeys((Attribute.ENCRYPT, Attribute.WRAP), DEFAULT),
    ),
)
# What a token says when a template has an attribute it does not take.
_TEMPLATE_ERRORS: Final = (
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeValueInvalid,
    pkcs11.AttributeReadOnly,
    pkcs11.TemplateInconsistent,
)
_UNREADABLE: Final = (
    pkcs11.AttributeTypeInvalid,
    pkcs11.AttributeSensitive,
    pkcs11.FunctionFailed,
)
_SIGNATURE_BUFFER: Final = 512


@dataclass(frozen=True, slots=True)
class Generated:
    """A fresh key pair's name and public half."""

    uri: Pkcs11Uri
    public_key: PublicKey


def describe(error: pkcs11.PKCS11Error) -> str:
    """A PKCS#11 error in words. The library's own text may come with unmapped codes only."""
    name = type(error).__name__
    return str(error) if type(error) is pkcs11.PKCS11Error else name


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
    # Read to the end: an unfinished search would be ended by the garbage collector,
    # on whatever thread that runs.
    found = list(session.get_objects(wanted))
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
    key_id = _read(private_key, Attribute.ID)
    label = _read(private_key, Attribute.LABEL)
    if key_id:
        wanted[Attribute.ID] = key_id
    elif label:
        wanted[Attribute.LABEL] = label
    else:
        return _decode_public_key(private_key)
    found = list(session.get_objects(wanted))
    decoded = {public_key_info(key): key for item in found if (key := _decode_public_key(item))}
    if len(decoded) == 1:
        return next(iter(decoded.values()))
    # None, or several under one id: the private object may know for itself.
    return _decode_public_key(private_key)


def _decode_public_key(item: Any) -> PublicKey | None:
    kind = _read(item, Attribute.KEY_TYPE)
    if kind is KeyType.RSA:
        modulus = _read(item, Attribute.MODULUS)
        exponent = _read(item, Attribute.PUBLIC_EXPONENT)
        if not modulus or not exponent:
            return None
        numbers = rsa.RSAPublicNumbers(
            int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big")
        )
        return numbers.public_key()
    if kind not in (KeyType.EC, KeyType.EC_EDWARDS):
        raise KeyFault("A signing key is RSA, EC or Ed25519.", reason="KEY_UNSUPPORTED")
    params = _read(item, Attribute.EC_PARAMS)
    point = _read(item, Attribute.EC_POINT)
    if not params or not point:
        return None
    if params in (_ED25519_PARAMS, _ED25519_NAMED):
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
        object=_read(private_key, Attribute.LABEL) or None,
        id=_read(private_key, Attribute.ID) or None,
        type=ObjectType.PRIVATE,
    )


def read_attributes(token: Any, private_key: Any) -> KeyAttributes:
    """How the token holds a private key."""
    never = _read(private_key, Attribute.NEVER_EXTRACTABLE)
    other = tuple(name for flag, name in _OTHER_USES.items() if _read(private_key, flag))
    return KeyAttributes(
        storage="pkcs11",
        token=f"{token.label} ({token.model}, serial {token.serial.decode('utf-8', 'replace')})",
        is_extractable=_read(private_key, Attribute.EXTRACTABLE),
        was_ever_extractable=None if never is None else not never,
        is_sensitive=_read(private_key, Attribute.SENSITIVE),
        is_local=_read(private_key, Attribute.LOCAL),
        is_sign_only=bool(_read(private_key, Attribute.SIGN)) and not other,
        other_uses=other,
    )


def generate_key(session: pkcs11.Session, label: str, kind: KeyAlgorithmName) -> Generated:
    """Make a key pair in the token that can only sign and never leaves it.

    Args:
        session: A read/write session, logged in.

    Raises:
        KeyFault: The token does not offer this kind, or made a key that can do more;
            such a key has been destroyed again.
    """
    token = session.token
    family = "rsa" if kind.rsa_bits else "ec" if kind.curve else "ed25519"
    mechanism = _GENERATE[family]
    if mechanism not in token.slot.get_mechanisms():
        raise KeyFault(
            f"The token {token.label!r} cannot make {kind} keys: it does not offer "
            f"CKM_{mechanism.name}.",
            reason="KEY_UNSUPPORTED",
        )
    key_id = new_key_id(session, token.manufacturer_id)
    public, private = _generate_pair(session, label, key_id, kind)
    try:
        faults = _faults_of(private)
        public_key = _decode_public_key(public)
        if public_key is None:
            faults.append("its public key cannot be read")
    except BaseException:
        _destroy(public, private)
        raise
    if faults or public_key is None:
        _destroy(public, private)
        raise KeyFault(
            f"The token {token.label!r} made a key that is not fit for signing certificates "
            f"({', '.join(faults)}), so it was destroyed again. Check the token's policy.",
            reason="KEY_UNFIT",
        )
    return Generated(key_uri(token, private), public_key)


def new_key_id(session: pkcs11.Session, manufacturer: str) -> bytes:
    """A random CKA_ID that no private key of the token has yet.

    Sixteen bytes; two for a YubiHSM 2, whose objects have 16-bit ids: longer ones are
    cut short by some versions of its module, and need extra objects in others.
    """
    while True:
        if manufacturer.startswith("Yubico"):
            # Neither 0x0000 nor 0xffff, which are reserved, nor one of a single byte.
            key_id = (0x0100 + secrets.randbelow(0xFE00)).to_bytes(2, "big")
        else:
            key_id = secrets.token_bytes(16)
        wanted = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.ID: key_id}
        if not list(session.get_objects(wanted)):
            return key_id


def _generate_pair(
    session: pkcs11.Session, label: str, key_id: bytes, kind: KeyAlgorithmName
) -> tuple[Any, Any]:
    for private, public in _ADDITIONS[:-1]:
        try:
            return _generate_with(session, (label, key_id), kind, private, public)
        except _TEMPLATE_ERRORS:
            continue
    return _generate_with(session, (label, key_id), kind, *_ADDITIONS[-1])


def _generate_with(
    session: pkcs11.Session,
    name: tuple[str, bytes],
    kind: KeyAlgorithmName,
    private: dict[Attribute, Any],
    public: dict[Attribute, Any],
) -> tuple[Any, Any]:
    label, key_id = name
    common: dict[str, Any] = {
        "id": key_id,
        "label": label,
        "store": True,
        "capabilities": pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY,
        "public_template": {**_PUBLIC_TEMPLATE, **public},
        "private_template": {**_PRIVATE_TEMPLATE, **private},
    }
    if kind.rsa_bits is not None:
        return session.generate_keypair(KeyType.RSA, kind.rsa_bits, **common)
    if kind.curve is not None:
        params, key_type = encode_named_curve_parameters(kind.curve.name), KeyType.EC
    else:
        params, key_type = _ED25519_PARAMS, KeyType.EC_EDWARDS
    domain = session.create_domain_parameters(key_type, {Attribute.EC_PARAMS: params}, local=True)
    mechanism = _GENERATE["ec" if kind.curve else "ed25519"]
    return domain.generate_keypair(mechanism=mechanism, **common)


def _faults_of(private_key: Any) -> list[str]:
    must: dict[Attribute, tuple[bool, str]] = {
        Attribute.TOKEN: (True, "it is not stored"),
        Attribute.PRIVATE: (True, "it is visible without a login"),
        Attribute.SENSITIVE: (True, "it can be read"),
        Attribute.EXTRACTABLE: (False, "it can be extracted"),
        Attribute.SIGN: (True, "it cannot sign"),
    }
    faults = [text for flag, (want, text) in must.items() if _read(private_key, flag) is not want]
    faults += [f"it can {name}" for flag, name in _OTHER_USES.items() if _read(private_key, flag)]
    return faults


def _destroy(*objects: Any) -> None:
    for item in objects:
        item.destroy()


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


def _read(item: Any, attribute: Attribute) -> Any:
    try:
        return item[attribute]
    except _UNREADABLE:
        return None
    except ValueError:
        # A vendor's value that python-pkcs11 has no name for.
        return None
