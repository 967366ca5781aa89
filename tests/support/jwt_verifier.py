"""An independent verifier of JWT-SVIDs, by the standard's text: openssl checks the signature.

It knows nothing of the server, and uses none of its libraries for tokens.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["Refused", "claims_of", "header_of", "verify"]

# DER of a SubjectPublicKeyInfo on P-256, up to the two coordinates (RFC 5480).
_P256_PREFIX = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")


class Refused(Exception):
    """The token is not to be believed."""


def verify(
    token: str, keys: Mapping[str, Any], audience: str, now: float, directory: Path
) -> dict[str, Any]:
    """Checks a token as the JWT-SVID standard says (sections 2 to 5), and gives its claims."""
    header = header_of(token)
    if set(header) - {"alg", "kid", "typ"} or header.get("typ") not in (None, "JWT", "JOSE"):
        raise Refused(f"header {header}")
    if header["alg"] != "ES256":
        raise Refused(f"algorithm {header['alg']}")
    found = [key for key in keys["keys"] if key.get("kid") == header["kid"]]
    if len(found) != 1:
        raise Refused(f"{len(found)} keys have the kid {header['kid']}")
    _check_signature(token, found[0], directory)
    claims = claims_of(token)
    if not re.fullmatch(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+", claims["sub"]):
        raise Refused(f"subject {claims['sub']}")
    audiences = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
    if audience not in audiences:
        raise Refused(f"audiences {audiences}")
    if not isinstance(claims["exp"], int) or claims["exp"] <= now:
        raise Refused(f"expired {claims['exp']}")
    return claims


def header_of(token: str) -> dict[str, Any]:
    """The header, unchecked."""
    found: dict[str, Any] = json.loads(_octets(token.split(".", maxsplit=1)[0]))
    return found


def claims_of(token: str) -> dict[str, Any]:
    """The claims, unchecked."""
    found: dict[str, Any] = json.loads(_octets(token.split(".")[1]))
    return found


def _check_signature(token: str, key: Mapping[str, str], directory: Path) -> None:
    signed, _, signature = token.rpartition(".")
    raw = _octets(signature)
    if len(raw) != 64 or (key["kty"], key["crv"]) != ("EC", "P-256"):
        raise Refused("this is no signature of ES256")
    directory.mkdir(exist_ok=True)
    paths = [directory / name for name in ("key.der", "signature.der", "signed")]
    paths[0].write_bytes(_P256_PREFIX + _octets(key["x"]) + _octets(key["y"]))
    paths[1].write_bytes(_sequence(raw[:32], raw[32:]))
    paths[2].write_bytes(signed.encode("ascii"))
    done = subprocess.run(
        ["openssl", "dgst", "-sha256", "-verify", paths[0], "-keyform", "DER",
         "-signature", paths[1], paths[2]],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if done.returncode or "Verified OK" not in done.stdout:
        raise Refused(done.stdout + done.stderr)


def _sequence(*numbers: bytes) -> bytes:
    """A DER SEQUENCE of INTEGERs; all of it is short."""
    body = b""
    for number in numbers:
        bare = number.lstrip(b"\0") or b"\0"
        if bare[0] >= 0x80:
            bare = b"\0" + bare
        body += bytes((2, len(bare))) + bare
    return bytes((0x30, len(body))) + body


def _octets(text: str) -> bytes:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise Refused("base64url without padding is expected")
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
