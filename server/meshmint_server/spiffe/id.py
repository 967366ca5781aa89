"""SPIFFE IDs and trust domains (SPIFFE-ID standard, section 2).

This is the parser that authorisation rests on, so it only ever accepts or
refuses: it never repairs, and what it accepts is already in canonical form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["InvalidSpiffeId", "SpiffeId", "TrustDomain"]

SCHEME = "spiffe://"
MAX_TRUST_DOMAIN_BYTES = 255
MAX_ID_BYTES = 2048

# Always used with fullmatch: "$" would let a trailing newline through.
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+")


class InvalidSpiffeId(ValueError):
    """The text is not a SPIFFE ID or trust domain; the message says why."""


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """A trust domain, such as ``example.org``.

    Raises:
        InvalidSpiffeId: The name is empty, longer than 255 bytes, or has a
            character outside ``a-z0-9.-_`` (SPIFFE-ID section 2.1).
    """

    name: str

    def __post_init__(self) -> None:
        if not self.name:
            raise InvalidSpiffeId("the trust domain is empty")
        if len(self.name) > MAX_TRUST_DOMAIN_BYTES:
            raise InvalidSpiffeId(f"the trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise InvalidSpiffeId(
                "a trust domain has only lower-case letters, digits, '.', '-' and '_'"
            )

    def __str__(self) -> str:
        return self.name

    @property
    def id(self) -> SpiffeId:
        """The SPIFFE ID of the trust domain itself, without a path."""
        return SpiffeId(self, ())


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """A SPIFFE ID: a trust domain and the segments of a path.

    Raises:
        InvalidSpiffeId: A segment is empty, ``.`` or ``..``, has a character
            outside ``a-zA-Z0-9.-_`` (section 2.2), or the whole is longer than
            2048 bytes (section 2.3).
    """

    trust_domain: TrustDomain
    segments: tuple[str, ...]

    def __post_init__(self) -> None:
        for segment in self.segments:
            if not segment:
                raise InvalidSpiffeId("a path has no empty segment and no trailing '/'")
            if segment in (".", ".."):
                raise InvalidSpiffeId("a path has no '.' or '..' segment")
            if not _SEGMENT.fullmatch(segment):
                raise InvalidSpiffeId(
                    "a path segment has only letters, digits, '.', '-' and '_', "
                    "and no percent-encoding, query or fragment"
                )
        if len(str(self)) > MAX_ID_BYTES:
            raise InvalidSpiffeId(f"a SPIFFE ID has at most {MAX_ID_BYTES} bytes")

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Parses the canonical form, ``spiffe://<trust domain>[/<path>]``.

        Upper case in scheme or trust domain is refused rather than folded, as
        the standard lets an issuer do, so that one identity has one spelling.

        Raises:
            InvalidSpiffeId: The text is anything else.
        """
        if len(text) > MAX_ID_BYTES:
            raise InvalidSpiffeId(f"a SPIFFE ID has at most {MAX_ID_BYTES} bytes")
        if not text.startswith(SCHEME):
            raise InvalidSpiffeId(f"a SPIFFE ID starts with '{SCHEME}', in lower case")
        authority, slash, path = text[len(SCHEME) :].partition("/")
        return cls(TrustDomain(authority), tuple(path.split("/")) if slash else ())

    @property
    def path(self) -> str:
        """The path with its leading slash, or the empty string."""
        return "".join("/" + segment for segment in self.segments)

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain.name}{self.path}"
