"""The entries of a CRL in DER (RFC 5280 section 5.1.2.6). Pure.

Written here and not by cryptography: that builds a list of 100,000 in one go, and holds
the interpreter's lock for all of it, while everybody else in the worker waits.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from meshmint_server.keys import der_length
from meshmint_server.store import RevokedSerial

__all__ = ["encode_entries"]

_INTEGER, _ENUMERATED, _OCTET_STRING = b"\x02", b"\x0a", b"\x04"
_SEQUENCE, _UTC_TIME, _GENERALIZED_TIME = b"\x30", b"\x17", b"\x18"
_REASON_CODE: Final = b"\x06\x03\x55\x1d\x15"  # 2.5.29.21


def _element(tag: bytes, content: bytes) -> bytes:
    return b"".join((tag, der_length(len(content)), content))


def _extensions(reason: int) -> bytes:
    value = _element(_OCTET_STRING, _element(_ENUMERATED, bytes((reason,))))
    return _element(_SEQUENCE, _element(_SEQUENCE, _REASON_CODE + value))


# RFC 5280 section 5.3.1: unspecified (0) is said by saying nothing. What no certificate
# here can be revoked for (removeFromCRL) is not said either.
_REASONS: Final = {code: _extensions(code) for code in (1, 2, 3, 4, 5, 6, 9, 10)}


def encode_entries(revoked: Iterable[RevokedSerial]) -> bytes:
    """What a CRL says of revoked certificates: number, date and reason, one after the other."""
    return b"".join(
        _element(
            _SEQUENCE,
            b"".join(
                (
                    _number(int(one.serial_number, 16)),
                    _time(one.revoked_at),
                    _REASONS.get(one.reason, b""),
                )
            ),
        )
        for one in revoked
    )


def _number(value: int) -> bytes:
    # An octet more where the first bit is set: that would be the sign.
    return _element(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _time(at: datetime) -> bytes:
    """To the second; in two forms, by the year (RFC 5280 section 5.1.2.6)."""
    if 1950 <= at.year < 2050:
        return _element(_UTC_TIME, f"{at:%y%m%d%H%M%SZ}".encode("ascii"))
    return _element(_GENERALIZED_TIME, f"{at:%Y%m%d%H%M%SZ}".encode("ascii"))
