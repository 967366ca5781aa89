"""otherName SANs: which a role allows, and how one is written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509

from meshmint_server.policy.globs import Glob
from meshmint_server.policy.request import OtherName
from meshmint_server.policy.usages import parse_oid

__all__ = ["OtherNameRules", "decode_other_name", "encode_other_name"]

MAX_VALUE = 1024
_UTF8_STRING = 0x0C


@dataclass(frozen=True, slots=True)
class OtherNameRules:
    """What allowed_other_sans says."""

    allows_any: bool
    globs: tuple[tuple[str, Glob], ...]

    @classmethod
    def parse(cls, entries: Iterable[str]) -> OtherNameRules:
        """Reads entries "<oid>;UTF8:<glob>" or "*".

        Raises:
            ValueError: An entry is neither.
        """
        texts = tuple(entries)
        return cls("*" in texts, tuple(_parse_entry(text) for text in texts if text != "*"))

    def allows(self, name: OtherName) -> bool:
        """Tells whether the name is allowed; object identifiers are compared exactly."""
        return self.allows_any or any(
            oid == name.type_id and glob.matches(name.value) for oid, glob in self.globs
        )


def _parse_entry(text: str) -> tuple[str, Glob]:
    oid, semicolon, rest = text.partition(";")
    kind, colon, glob = rest.partition(":")
    if not semicolon or not colon:
        raise ValueError(f"{text!r} is not of the form <oid>;UTF8:<glob>")
    if kind.upper() not in ("UTF8", "UTF-8"):
        raise ValueError(f"{text!r}: only UTF8 values are supported")
    return parse_oid(oid).dotted_string, Glob(glob)


def encode_other_name(name: OtherName) -> x509.OtherName:
    """Writes an otherName with a UTF8String.

    Raises:
        ValueError: The object identifier is none, or the value is empty, too
            long, or has control characters.
    """
    oid = parse_oid(name.type_id)
    if not name.value or len(name.value) > MAX_VALUE or not name.value.isprintable():
        raise ValueError(f"the value has 1 to {MAX_VALUE} characters and no control characters")
    return x509.OtherName(oid, _der_utf8(name.value.encode()))


def decode_other_name(name: x509.OtherName) -> OtherName:
    """Reads an otherName whose value is a DER UTF8String and nothing else.

    Raises:
        ValueError: Its value is anything else; the message goes on from "an otherName …".
    """
    der = name.value
    if len(der) < 3 or der[0] != _UTF8_STRING:
        raise ValueError("is not a UTF8String")
    length, start = der[1], 2
    if length >= 0x80:
        octets = length & 0x7F
        length = int.from_bytes(der[2 : 2 + octets], "big")
        start = 2 + octets
        if octets not in (1, 2) or length < 0x80 or (octets == 2 and length < 0x100):
            raise ValueError("is not DER")
    if len(der) != start + length:
        raise ValueError("is not DER")
    try:
        return OtherName(name.type_id.dotted_string, der[start:].decode())
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8") from None


def _der_utf8(data: bytes) -> bytes:
    length = len(data)
    if length < 0x80:
        return bytes((_UTF8_STRING, length)) + data
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes((_UTF8_STRING, 0x80 | len(octets))) + octets + data
