"""Reads one PEM block (RFC 7468), and nothing else: what strangers paste is not searched.

Whoever takes the first of several blocks, or ignores what stands around one, decides
about another object than the sender sees.
"""

from __future__ import annotations

import base64
import re

__all__ = ["decode_pem_block"]

_BLOCK = re.compile(
    r"\s*-----BEGIN (?P<label>[A-Z0-9 ]{1,64})-----[ \t]*\r?\n"
    r"(?P<body>[A-Za-z0-9+/=\s]*)"
    r"-----END (?P=label)-----\s*"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_WHITE = re.compile(r"\s+")


def decode_pem_block(text: str, labels: frozenset[str], what: str, *, max_bytes: int) -> bytes:
    """The bytes of the one block that the text is.

    Args:
        text: PEM. White space around the block is allowed.
        labels: What the block may be called.
        what: What it holds, for messages, such as ``CSR``.
        max_bytes: The most that it may hold. The text may be twice as long.

    Raises:
        ValueError: It is anything else; the message says what, without a full stop.
    """
    name = min(labels, key=len)
    if not text.strip():
        raise ValueError(f"the {what} is empty")
    too_large = f"a {what} has at most {max_bytes // 1024} KiB"
    if len(text) > 2 * max_bytes:
        raise ValueError(too_large)
    if text.count("-----BEGIN ") > 1:
        raise ValueError(f"send one PEM block, the {name}")
    match = _BLOCK.fullmatch(text)
    if match is None or match["label"] not in labels:
        raise ValueError(f"the {what} is not one PEM block of type {name}")
    body = _WHITE.sub("", match["body"])
    # binascii lets some padding through that has no place there.
    if len(body) % 4 or not _BASE64.fullmatch(body):
        raise ValueError(f"the {what}'s PEM block is not base64")
    found = base64.b64decode(body)
    if len(found) > max_bytes:
        raise ValueError(too_large)
    return found
