"""PKCS#12 files (RFC 7292), which are what Java keeps keys and roots in, too.

Each is encrypted anew whenever it is made, so two with the same in them differ; whether
one that is there still holds the right things is found out by opening it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    pkcs12,
)

from meshmint.agent.identities import Identity
from meshmint.agent.outputs.errors import OutputError, could_not
from meshmint.agent.outputs.settings import PasswordSource

__all__ = ["is_key_store", "is_trust_store", "key_store", "read_password", "trust_store"]

# Ten times Java's own. The whole process stands still while `cryptography` derives the two keys
# of a store (about 60 ms), and more would not help: the MAC, whose rounds it does not let us
# choose, is the cheaper way to guess a password.
_MODERN_ROUNDS = 100_000
_COMPATIBLE_ROUNDS = 50_000
_MOST_PASSWORD_BYTES = 1024
# The OIDs of PBES2 (RFC 8018) and pbeWithSHAAnd3-KeyTripleDES-CBC (RFC 7292), in DER.
_MARKS = {
    "modern": bytes.fromhex("06092a864886f70d01050d"),
    "compatible": bytes.fromhex("060a2a864886f70d010c0103"),
}
Encryption = Literal["modern", "compatible"]


def read_password(source: PasswordSource) -> bytes:
    """The password, in UTF-8.

    Raises:
        OutputError: There is none.
    """
    if source.environment is not None:
        where, password = source.environment, os.environb.get(source.environment.encode(), b"")
    else:
        assert source.file is not None  # noqa: S101 - one of them is there
        where, password = str(source.file), _first_bytes(source.file)
        password = password.removesuffix(b"\n").removesuffix(b"\r")
    if not password:
        raise OutputError(where, "holds no password: put one there")
    if len(password) > _MOST_PASSWORD_BYTES:
        raise OutputError(where, f"a password has at most {_MOST_PASSWORD_BYTES} bytes")
    try:
        text = password.decode("utf-8")
    except UnicodeDecodeError:
        raise OutputError(where, "holds a password that is not UTF-8: use another") from None
    if not text.isprintable():
        raise OutputError(where, "holds more than a password: leave that one line alone in it")
    return password


def _first_bytes(path: Path) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OutputError(path, "is no regular file: put the password into one")
            return file.read(_MOST_PASSWORD_BYTES + 3)
    except FileNotFoundError:
        raise OutputError(path, "there is no such file: put the password into it") from None
    except OSError as error:
        raise could_not("read the password from", path, error) from error


def _protection(password: bytes, encryption: Encryption) -> KeySerializationEncryption:
    builder = PrivateFormat.PKCS12.encryption_builder()
    if encryption == "modern":
        return (
            builder.kdf_rounds(_MODERN_ROUNDS)
            .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
            .hmac_hash(hashes.SHA256())
            .build(password)
        )
    return (
        builder.kdf_rounds(_COMPATIBLE_ROUNDS)
        .key_cert_algorithm(pkcs12.PBES.PBESv1SHA1And3KeyTripleDESCBC)
        .hmac_hash(hashes.SHA1())  # noqa: S303 - what old programs read
        .build(password)
    )


def key_store(identity: Identity, alias: str, password: bytes, encryption: Encryption) -> bytes:
    """A store with the private key, the certificate and its chain."""
    return pkcs12.serialize_key_and_certificates(
        alias.encode(),
        identity.key,
        identity.certificate,
        identity.chain,
        _protection(password, encryption),
    )


def is_key_store(
    data: bytes, identity: Identity, alias: str, password: bytes, encryption: Encryption
) -> bool:
    """Whether this is such a store already."""
    opened = _opened(data, password, encryption)
    return (
        opened is not None
        and opened.cert is not None
        and opened.cert.certificate == identity.certificate
        and opened.cert.friendly_name == alias.encode()
        and opened.key is not None
        and _private_bytes(opened.key) == _private_bytes(identity.key)
        and sorted(_der(one.certificate) for one in opened.additional_certs)
        == sorted(_der(one) for one in identity.chain)
    )


def trust_store(
    roots: Sequence[tuple[str, x509.Certificate]], password: bytes, encryption: Encryption
) -> bytes:
    """A store with certificates that Java trusts (with Oracle's attribute that says so).

    Args:
        roots: Alias and certificate of each.
        password: What it is encrypted with.
        encryption: How.
    """
    return pkcs12.serialize_java_truststore(
        [pkcs12.PKCS12Certificate(root, alias.encode()) for alias, root in roots],
        _protection(password, encryption),
    )


def is_trust_store(
    data: bytes,
    roots: Sequence[tuple[str, x509.Certificate]],
    password: bytes,
    encryption: Encryption,
) -> bool:
    """Whether this is such a store already."""
    opened = _opened(data, password, encryption)
    return (
        opened is not None
        and opened.key is None
        and sorted((one.friendly_name, _der(one.certificate)) for one in opened.additional_certs)
        == sorted((alias.encode(), _der(root)) for alias, root in roots)
    )


def _opened(
    data: bytes, password: bytes, encryption: Encryption
) -> pkcs12.PKCS12KeyAndCertificates | None:
    if any((mark in data) != (kind == encryption) for kind, mark in _MARKS.items()):
        return None
    try:
        return pkcs12.load_pkcs12(data, password)
    except (ValueError, UnsupportedAlgorithm):
        return None


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def _private_bytes(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
