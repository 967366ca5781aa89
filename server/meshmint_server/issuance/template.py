"""To-be-signed certificates that differ in serial number, validity and key alone.

cryptography's builder makes the first one; its encoding is then cut where these three
stand, and later ones are put together from the pieces. So the builder decides what a
certificate looks like, and is not paid for each. Nothing else may vary between two
certificates of one template.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshmint_server.authority import Issuer
from meshmint_server.keys import ToBeSigned, der_length
from meshmint_server.policy import Grant, PublicKey

__all__ = ["Template", "Templates"]

_SUBJECT_KEY_IDENTIFIER: Final = bytes.fromhex("0603551d0e")  # OID 2.5.29.14
_IDENTIFIER_BYTES: Final = 20
# RFC 5280 section 4.1.2.5: UTCTime through 2049.
_FIRST_GENERALIZED_YEAR: Final = 2050


class Template:
    """What certificates of one grant from one issuer have in common.

    Args:
        example: One of them. Its extensions hold a subject key identifier of 20 bytes.

    Raises:
        ValueError: The example is no such TBSCertificate.
    """

    __slots__ = ("_algorithm_identifier", "_before", "_head", "_rest", "_subject", "_version")

    def __init__(self, example: ToBeSigned) -> None:
        data = example.data
        # RFC 5280 section 4.1: version, serialNumber, signature, issuer, validity, subject,
        # subjectPublicKeyInfo, extensions.
        cuts = _elements(data, *_content(data, 0))
        if len(cuts) != 8:
            raise ValueError("no certificate of version 3 without unique identifiers")
        (_, _), (serial, _), (signature, _), (_, _), (validity, _), (subject, _) = cuts[:6]
        (key, _), (extensions, end) = cuts[6:]
        identifier = _identifier(data, extensions)
        self._version = data[cuts[0][0] : serial]
        self._head = data[signature:validity]
        self._subject = data[subject:key]
        self._before = data[extensions:identifier]
        self._rest = data[identifier + _IDENTIFIER_BYTES : end]
        self._algorithm_identifier = example.algorithm_identifier

    def fill(
        self, serial_number: int, not_before: datetime, not_after: datetime, public_key: PublicKey
    ) -> ToBeSigned:
        """The to-be-signed certificate with these.

        Args:
            serial_number: Positive.
            not_before: UTC, whole seconds.
            not_after: UTC, whole seconds.
            public_key: The subject's, of the same kind as the example's.
        """
        info = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        serial = serial_number.to_bytes(serial_number.bit_length() // 8 + 1, "big")
        validity = _time(not_before) + _time(not_after)
        body = b"".join(
            (
                self._version,
                b"\x02",
                der_length(len(serial)),
                serial,
                self._head,
                b"\x30",
                der_length(len(validity)),
                validity,
                self._subject,
                info,
                self._before,
                _key_identifier(info),
                self._rest,
            )
        )
        return ToBeSigned(b"\x30" + der_length(len(body)) + body, self._algorithm_identifier)


class Templates:
    """The templates that were lately used, by grant, issuer and CRL shard.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = 2048) -> None:
        self._most = most
        # The objects stand beside what they made, so that no other can get their identity.
        self._kept: OrderedDict[tuple[int, int, int], tuple[Grant, Issuer, Template]] = (
            OrderedDict()
        )

    def find(self, grant: Grant, issuer: Issuer, shard: int) -> Template | None:
        """The template, if there is one."""
        place = (id(grant), id(issuer), shard)
        kept = self._kept.get(place)
        if kept is None:
            return None
        self._kept.move_to_end(place)
        return kept[2]

    def keep(self, grant: Grant, issuer: Issuer, shard: int, template: Template) -> None:
        """Keeps a template, at the cost of the one that was not used for longest."""
        self._kept[id(grant), id(issuer), shard] = (grant, issuer, template)
        if len(self._kept) > self._most:
            self._kept.popitem(last=False)


@lru_cache(maxsize=1024)
def _time(moment: datetime) -> bytes:
    if moment.year < _FIRST_GENERALIZED_YEAR:
        return b"\x17\x0d" + moment.strftime("%y%m%d%H%M%SZ").encode("ascii")
    return b"\x18\x0f" + moment.strftime("%Y%m%d%H%M%SZ").encode("ascii")


def _key_identifier(info: bytes) -> bytes:
    """SHA-1 of the key's bits (RFC 5280 section 4.2.1.2, method 1)."""
    (_, _), (bits, end) = _elements(info, *_content(info, 0))
    start, _ = _content(info, bits)
    # Its first byte is the number of unused bits.
    return hashlib.sha1(info[start + 1 : end], usedforsecurity=False).digest()


def _identifier(data: bytes, extensions: int) -> int:
    """Where the subject key identifier's bytes begin."""
    start, _ = _content(data, extensions)
    for begin, end in _elements(data, *_content(data, start)):
        inside, _ = _content(data, begin)
        if data.startswith(_SUBJECT_KEY_IDENTIFIER, inside):
            found = end - _IDENTIFIER_BYTES
            # Not critical: an OCTET STRING that holds one of 20 bytes.
            if data[inside + len(_SUBJECT_KEY_IDENTIFIER) : found] == b"\x04\x16\x04\x14":
                return found
    raise ValueError("no subject key identifier of 20 bytes")


def _content(data: bytes, start: int) -> tuple[int, int]:
    """Where the content of the element at ``start`` begins and ends (X.690 section 8.1)."""
    size, start = data[start + 1], start + 2
    if size & 0x80:
        octets = size & 0x7F
        size, start = int.from_bytes(data[start : start + octets], "big"), start + octets
    return start, start + size


def _elements(data: bytes, start: int, end: int) -> list[tuple[int, int]]:
    """Where each of the elements between two places begins and ends."""
    found = []
    while start < end:
        _, after = _content(data, start)
        found.append((start, after))
        start = after
    return found
