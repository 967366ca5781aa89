"""Making a key in a PKCS#11 token: one that can only sign, and can never leave it.

What a token makes of a template is its own affair, so the finished key is read
back, and one that can do more than sign is destroyed again. Runs only on the
thread that owns the module, over an open read/write session.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final

import pkcs11
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.constants import DEFAULT
from pkcs11.util.ec import encode_named_curve_parameters

from meshmint_server.keys.algorithm import KeyAlgorithmName, PublicKey
from meshmint_server.keys.key import KeyFault
from meshmint_server.keys.pkcs11_objects import (
    ED25519_PARAMS,
    OTHER_USES,
    decode_public_key,
    key_uri,
    read_attribute,
    read_public_key,
    search,
)
from meshmint_server.keys.uri import Pkcs11Uri

__all__ = ["Generated", "find_or_generate_key", "generate_key", "new_key_id"]

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


@dataclass(frozen=True, slots=True)
class Generated:
    """A key pair's name and public half."""

    uri: Pkcs11Uri
    public_key: PublicKey


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
        public_key = decode_public_key(public)
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


def find_or_generate_key(session: pkcs11.Session, label: str, kind: KeyAlgorithmName) -> Generated:
    """The key with this label; made if there is none.

    Args:
        session: A read/write session, logged in. In one that is not, no private key is
            seen, and none can be made either.

    Raises:
        KeyFault: As for `generate_key`; or the label is that of several keys, or of one
            that can do more than sign.
    """
    found = search(session, {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.LABEL: label})
    if not found:
        return generate_key(session, label, kind)
    if len(found) > 1:
        raise KeyFault(
            f"The token has {len(found)} private keys with the label {label!r}.",
            reason="KEY_AMBIGUOUS",
        )
    (private,) = found
    faults = _faults_of(private)
    public_key = read_public_key(session, private)
    if public_key is None:
        faults.append("its public key cannot be read")
    if faults or public_key is None:
        raise KeyFault(
            f"The key {label!r} in the token is not fit for signing certificates "
            f"({', '.join(faults)}).",
            reason="KEY_UNFIT",
        )
    return Generated(key_uri(session.token, private), public_key)


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
        if not search(session, wanted):
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
        params, key_type = ED25519_PARAMS, KeyType.EC_EDWARDS
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
    faults = [
        text for flag, (want, text) in must.items() if read_attribute(private_key, flag) is not want
    ]
    faults += [
        f"it can {name}" for flag, name in OTHER_USES.items() if read_attribute(private_key, flag)
    ]
    return faults


def _destroy(*objects: Any) -> None:
    for item in objects:
        item.destroy()
