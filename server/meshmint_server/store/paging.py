"""Page sizes and page tokens (AIP-158).

A token is a position in one list with one filter. It is no secret and grants
nothing: whoever may present it may read that list from the start anyway.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from meshmint_server.errors import InvalidRequest, Violation

__all__ = ["bounded_page_size", "decode_page_token", "encode_page_token"]

_DEFAULT_SIZE = 50
_LARGEST_SIZE = 1000
_VERSION = b"\x01"
_SCOPE_BYTES = 12
_LONGEST_TOKEN = 4096


def bounded_page_size(asked: int) -> int:
    """The page size that is used for the one asked for."""
    return _DEFAULT_SIZE if asked < 1 else min(asked, _LARGEST_SIZE)


def encode_page_token(scope: str, position: bytes) -> str:
    """A token for `position` that holds only in `scope`: which list, with which filter."""
    return base64.urlsafe_b64encode(_VERSION + _digest(scope) + position).rstrip(b"=").decode()


def decode_page_token(scope: str, token: str) -> bytes:
    """The position in a token.

    Raises:
        InvalidRequest: It is no token of ours, or one of another list or filter.
    """
    if len(token) > _LONGEST_TOKEN:
        raise bad_page_token()
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raise bad_page_token() from None
    head = _VERSION + _digest(scope)
    if not data.startswith(head):
        raise bad_page_token()
    return data[len(head) :]


def bad_page_token() -> InvalidRequest:
    """The answer to every token that cannot be used."""
    description = "Use the next_page_token of the page before, with the same filter, or none."
    return InvalidRequest(
        "The page token is not one of this list.",
        violations=[Violation("page_token", description)],
    )


def _digest(scope: str) -> bytes:
    return hashlib.sha256(scope.encode()).digest()[:_SCOPE_BYTES]
