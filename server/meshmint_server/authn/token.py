"""Reads a JWS compact token (RFC 7515 section 7.1) without believing it.

The only parser of tokens in the server: what is looked at to choose an
authenticator is, byte for byte, what is verified later. It repairs nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from meshmint_server.authn.refusal import Refusal, refuse

__all__ = [
    "MAX_TOKEN_BYTES",
    "Json",
    "ParsedToken",
    "digest_if_sound",
    "parse_json_object",
    "parse_token",
]

MAX_TOKEN_BYTES = 16 * 1024

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")


@dataclass(frozen=True, slots=True, repr=False)
class ParsedToken:
    """A token taken apart. Nothing of it is verified.

    Attributes:
        text: The token itself; only the token reviewer is shown it.
        header: The JOSE header.
        claims: The payload.
        signing_input: What the signature is over.
        signature: The signature, decoded; empty for an unsecured token.
        digest: SHA-256 of the token, under which it is remembered.
    """

    text: str
    header: Mapping[str, Json]
    claims: Mapping[str, Json]
    signing_input: bytes
    signature: bytes
    digest: bytes = field(default=b"")

    def __repr__(self) -> str:
        return f"ParsedToken(digest={self.digest.hex()[:12]})"


def digest_if_sound(token: str | None) -> bytes | None:
    """The SHA-256 under which a token is remembered; None if it cannot be one."""
    if token and len(token) <= MAX_TOKEN_BYTES and token.isascii():
        return hashlib.sha256(token.encode("ascii")).digest()
    return None


def _unsound(token: str) -> Exception:
    if not token:
        return refuse(
            Refusal.CREDENTIAL_MISSING,
            "no credential: send a token in the metadata 'authorization: Bearer <token>'",
        )
    if len(token) > MAX_TOKEN_BYTES:
        return refuse(
            Refusal.CREDENTIAL_MALFORMED, f"the token is over {MAX_TOKEN_BYTES} bytes long"
        )
    return refuse(Refusal.CREDENTIAL_MALFORMED, "the token is not a JWT: it is not ASCII text")


def parse_token(token: str, digest: bytes | None = None) -> ParsedToken:
    """Takes a token apart.

    Args:
        token: The token, without "Bearer ".
        digest: What `digest_if_sound` gave for it, where it was asked already.

    Raises:
        Unauthenticated: There is none, it is over 16 KiB, or not a JWT.
    """
    digest = digest or digest_if_sound(token)
    if digest is None:
        raise _unsound(token)
    parts = _COMPACT.fullmatch(token)
    if parts is None:
        raise refuse(
            Refusal.CREDENTIAL_MALFORMED,
            "the token is not a JWT: expected three base64url parts with dots between them, "
            "and no spaces or line breaks",
        )
    try:
        header = parse_json_object(_decode(parts[1]))
        claims = parse_json_object(_decode(parts[2]))
        signature = _decode(parts[3])
    except ValueError as error:
        raise refuse(
            Refusal.CREDENTIAL_MALFORMED,
            "the token is not a JWT: header and payload must be base64url of JSON objects, "
            "each name only once",
        ) from error
    return ParsedToken(
        text=token,
        header=header,
        claims=claims,
        signing_input=token[: parts.end(2)].encode("ascii"),
        signature=signature,
        digest=digest,
    )


def parse_json_object(data: bytes) -> dict[str, Json]:
    """Parses a JSON object, and refuses what two parsers may read differently.

    Raises:
        ValueError: It is not an object in UTF-8, repeats a name, holds NaN,
            Infinity or a number past a float's range, a lone surrogate, or is
            nested too deeply.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_with_unique_names,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    if b"\\u" in data:
        # An escaped lone surrogate would only fail later, in whatever encodes it.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _object_with_unique_names(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _refuse_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _decode(part: str) -> bytes:
    # The alphabet is checked already; this adds the padding that JWS leaves out.
    data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=") != part.encode("ascii"):
        raise ValueError("base64url with stray bits at its end")
    return data
