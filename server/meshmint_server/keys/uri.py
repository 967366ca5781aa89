"""Names of signing keys: RFC 7512 PKCS#11 URIs, and ``file:`` names.

Two kinds of PKCS#11 URI exist here, and they must never be mixed up. The
configuration has one *token URI*, which says what code to load and where the
PIN is. The store has many *key URIs*, which only say which object to use: one
with a module path or a PIN in it is refused, because whoever can write to the
store must not choose what the service loads. A PIN itself is never in a URI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Final

from meshmint_server.errors import InvalidRequest

__all__ = [
    "FileKeyUri",
    "InvalidKeyUri",
    "ObjectType",
    "Pkcs11Uri",
    "is_pkcs11_uri",
    "parse_key_uri",
    "parse_token_uri",
]

_MAX_LENGTH: Final = 4096
_SCHEME: Final = "pkcs11:"

# RFC 7512 section 2.3, pk11-res-avail: characters that may stand unencoded in
# a path value; "/" "?" and "|" also in a query value.
_PATH_LITERAL: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:[]@!$'()*+,=&"
)
_QUERY_LITERAL: Final = (_PATH_LITERAL - frozenset(b"&")) | frozenset(b"/?|")
_HEX: Final = frozenset("0123456789abcdefABCDEF")

# URI attribute name -> field. Strings are UTF-8 (RFC 7512 section 2.3); id is bytes.
_PATH_ATTRIBUTES: Final = {
    "token": "token",
    "manufacturer": "manufacturer",
    "serial": "serial",
    "model": "model",
    "library-manufacturer": "library_manufacturer",
    "library-version": "library_version",
    "library-description": "library_description",
    "object": "object",
    "type": "type",
    "id": "id",
    "slot-manufacturer": "slot_manufacturer",
    "slot-description": "slot_description",
    "slot-id": "slot_id",
}
_QUERY_ATTRIBUTES: Final = {
    "pin-source": "pin_source",
    "module-path": "module_path",
    "module-name": "module_name",
}
# Sizes of the fixed, blank-padded fields of CK_TOKEN_INFO, CK_SLOT_INFO and CK_INFO.
_MAX_BYTES: Final = {
    "token": 32,
    "manufacturer": 32,
    "serial": 16,
    "model": 16,
    "library_manufacturer": 32,
    "library_description": 32,
    "slot_manufacturer": 32,
    "slot_description": 64,
}


class InvalidKeyUri(InvalidRequest, ValueError):
    """A key or token URI is malformed or says what it must not say."""

    default_reason = "INVALID_KEY_URI"


class ObjectType(StrEnum):
    """Values of the ``type`` attribute, RFC 7512 section 2.3."""

    PUBLIC = "public"
    PRIVATE = "private"
    CERT = "cert"
    SECRET_KEY = "secret-key"  # noqa: S105  a value of RFC 7512
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """A parsed PKCS#11 URI. What is None was not given.

    Attributes:
        id: CKA_ID, raw bytes.
        library_version: Major and minor.
        pin_source: Where to read the PIN: ``file:/path`` or ``env:NAME``.
    """

    token: str | None = None
    manufacturer: str | None = None
    serial: str | None = None
    model: str | None = None
    library_manufacturer: str | None = None
    library_version: tuple[int, int] | None = None
    library_description: str | None = None
    object: str | None = None
    type: ObjectType | None = None
    id: bytes | None = None
    slot_manufacturer: str | None = None
    slot_description: str | None = None
    slot_id: int | None = None
    pin_source: str | None = None
    module_path: str | None = None
    module_name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Pkcs11Uri:
        """Parse any PKCS#11 URI, RFC 7512.

        Unknown and vendor attributes are refused: what is not understood
        cannot be honoured. ``pin-value`` is refused without showing it.

        Raises:
            InvalidKeyUri: With what is wrong.
        """
        if len(text) > _MAX_LENGTH:
            raise InvalidKeyUri(f"A PKCS#11 URI is longer than {_MAX_LENGTH} characters.")
        if not text.startswith(_SCHEME):
            raise InvalidKeyUri("A PKCS#11 URI starts with 'pkcs11:'.")
        path, has_query, query = text[len(_SCHEME) :].partition("?")
        values: dict[str, object] = {}
        if path:
            _read(path.split(";"), _PATH_ATTRIBUTES, _PATH_LITERAL, values)
        if has_query:
            _read(query.split("&"), _QUERY_ATTRIBUTES, _QUERY_LITERAL, values)
        return cls(**values)  # type: ignore[arg-type]

    @property
    def has_query(self) -> bool:
        """Whether it names a module or a PIN source."""
        return any(getattr(self, name) is not None for name in _QUERY_ATTRIBUTES.values())

    @property
    def token_part(self) -> Pkcs11Uri:
        """The attributes that choose a library, slot and token; no object, no query."""
        chosen = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in _OBJECT_FIELDS and field.name not in _QUERY_ATTRIBUTES.values()
        }
        return Pkcs11Uri(**chosen)

    def __str__(self) -> str:
        """The canonical form: attributes in a fixed order, id fully encoded."""
        path = ";".join(
            f"{name}={_format(name, getattr(self, field), _PATH_LITERAL)}"
            for name, field in _PATH_ATTRIBUTES.items()
            if getattr(self, field) is not None
        )
        query = "&".join(
            f"{name}={_format(name, getattr(self, field), _QUERY_LITERAL)}"
            for name, field in _QUERY_ATTRIBUTES.items()
            if getattr(self, field) is not None
        )
        return f"{_SCHEME}{path}?{query}" if query else f"{_SCHEME}{path}"


_OBJECT_FIELDS: Final = ("object", "type", "id")


@dataclass(frozen=True, slots=True)
class FileKeyUri:
    """A key file by name, inside the configured directory: ``file:issuer-1.pem``."""

    name: str

    _NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")

    @classmethod
    def parse(cls, text: str) -> FileKeyUri:
        """Parse ``file:<name>``.

        Raises:
            InvalidKeyUri: The name is not one plain file name.
        """
        scheme, _, name = text.partition(":")
        if scheme != "file" or not cls._NAME.fullmatch(name):
            raise InvalidKeyUri(
                "A file key is named 'file:<name>': one file name of letters, digits, '.', '_' "
                "and '-', inside the configured key directory."
            )
        return cls(name)

    def __str__(self) -> str:
        return f"file:{self.name}"


def is_pkcs11_uri(text: str) -> bool:
    """Whether the text names a PKCS#11 object rather than a file."""
    return text.startswith(_SCHEME)


def parse_token_uri(text: str) -> Pkcs11Uri:
    """Parse the configuration's URI: which module, which token, where the PIN is.

    Raises:
        InvalidKeyUri: Malformed; or no module-path, no token named, an object
            named, or a PIN source of an unknown kind.
    """
    uri = Pkcs11Uri.parse(text)
    if uri.module_path is None:
        raise InvalidKeyUri(
            "The token URI needs 'module-path=' with the absolute path of the PKCS#11 module."
        )
    path = PurePosixPath(uri.module_path)
    if not path.is_absolute() or ".." in path.parts:
        raise InvalidKeyUri("'module-path' must be an absolute path without '..'.")
    if uri.module_name is not None:
        raise InvalidKeyUri("Use 'module-path' alone: 'module-name' would search for a module.")
    if any(getattr(uri, name) is not None for name in _OBJECT_FIELDS):
        raise InvalidKeyUri(
            "The token URI names a token, not a key: leave 'object', 'id' and 'type' out."
        )
    if all(getattr(uri, name) is None for name in ("token", "serial", "slot_id")):
        raise InvalidKeyUri("The token URI needs 'token=', 'serial=' or 'slot-id='.")
    if uri.pin_source is None:
        raise InvalidKeyUri("The token URI needs 'pin-source=file:/path' or 'pin-source=env:NAME'.")
    return uri


def parse_key_uri(text: str) -> Pkcs11Uri | FileKeyUri:
    """Parse a key's URI as the store keeps it.

    Raises:
        InvalidKeyUri: Malformed; or it has query attributes (module, PIN); or
            it names no object; or an object that is no private key.
    """
    if not is_pkcs11_uri(text):
        return FileKeyUri.parse(text)
    uri = Pkcs11Uri.parse(text)
    if uri.has_query:
        raise InvalidKeyUri(
            "A key URI has path attributes only: module and PIN belong in the configuration."
        )
    if uri.object is None and uri.id is None:
        raise InvalidKeyUri("A key URI needs 'id=' or 'object='.")
    if uri.type not in (None, ObjectType.PRIVATE):
        raise InvalidKeyUri("A key URI names a private key: 'type=private'.")
    return uri


def _read(
    parts: list[str],
    names: dict[str, str],
    literal: frozenset[int],
    values: dict[str, object],
) -> None:
    for part in parts:
        name, equals, encoded = part.partition("=")
        if name == "pin-value":
            raise InvalidKeyUri(
                "A PIN must not stand in a URI: use 'pin-source=file:/path' or "
                "'pin-source=env:NAME'."
            )
        if not equals or name not in names:
            # The text may be a misplaced PIN, so only a name that is known is repeated.
            known = name in _PATH_ATTRIBUTES or name in _QUERY_ATTRIBUTES
            shown = repr(name) if known else "an attribute"
            raise InvalidKeyUri(
                f"The PKCS#11 URI has {shown} where one of {', '.join(names)} is expected."
            )
        field = names[name]
        if field in values:
            raise InvalidKeyUri(f"The PKCS#11 URI has '{name}' twice.")
        values[field] = _value(name, field, _decode(name, encoded, literal))


def _decode(name: str, encoded: str, literal: frozenset[int]) -> bytes:
    out = bytearray()
    at = 0
    while at < len(encoded):
        char = encoded[at]
        if char == "%":
            digits = encoded[at + 1 : at + 3]
            if len(digits) != 2 or not _HEX.issuperset(digits):
                raise InvalidKeyUri(f"'{name}' has '%' without two hexadecimal digits.")
            out.append(int(digits, 16))
            at += 3
            continue
        if ord(char) not in literal:
            raise InvalidKeyUri(f"'{name}' has a character that must be percent-encoded.")
        out.append(ord(char))
        at += 1
    return bytes(out)


def _value(name: str, field: str, raw: bytes) -> object:
    if field == "id":
        if not raw:
            raise InvalidKeyUri("'id' is empty.")
        return raw
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidKeyUri(f"'{name}' is not UTF-8.") from None
    if not text or any(ord(char) < 0x20 or ord(char) == 0x7F for char in text):
        raise InvalidKeyUri(f"'{name}' is empty or has a control character.")
    if len(raw) > _MAX_BYTES.get(field, _MAX_LENGTH):
        raise InvalidKeyUri(f"'{name}' is longer than {_MAX_BYTES[field]} bytes.")
    if field == "type":
        try:
            return ObjectType(text)
        except ValueError:
            raise InvalidKeyUri(f"'type' is one of {', '.join(ObjectType)}.") from None
    if field == "slot_id":
        if not re.fullmatch(r"[0-9]{1,20}", text) or int(text) >= 1 << 64:
            raise InvalidKeyUri("'slot-id' is a decimal number.")
        return int(text)
    if field == "library_version":
        match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?", text)
        if match is None or any(int(part or 0) > 255 for part in match.groups()):
            raise InvalidKeyUri("'library-version' is 'major' or 'major.minor'.")
        return (int(match[1]), int(match[2] or 0))
    if field == "pin_source" and not re.fullmatch(
        r"file:(?://)?/[^/].*|env:[A-Za-z_][A-Za-z0-9_]*", text
    ):
        raise InvalidKeyUri("'pin-source' is 'file:/absolute/path' or 'env:NAME'.")
    return text


def _format(name: str, value: object, literal: frozenset[int]) -> str:
    if isinstance(value, bytes):
        return "".join(f"%{byte:02X}" for byte in value)
    if isinstance(value, tuple):
        return f"{value[0]}.{value[1]}"
    raw = str(value).encode("utf-8")
    return "".join(chr(byte) if byte in literal else f"%{byte:02X}" for byte in raw)
