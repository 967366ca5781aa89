"""URIs and the patterns that allow them: parsed first, then compared piece by piece.

Never compares raw text: Vault's globs let ``spiffe://d/*`` allow
``spiffe://d/../x?q=1``, and that is what this module is here to prevent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from meshmint_server.policy.globs import Glob
from meshmint_server.policy.names import MalformedName
from meshmint_server.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

__all__ = [
    "AnyUri",
    "SpiffePattern",
    "Uri",
    "UriPattern",
    "WebPattern",
    "parse_pattern",
    "parse_uri",
]

MAX_URI = 2048

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
# RFC 3986: unreserved, sub-delims, gen-delims and whole percent-encodings.
_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?#\[\]-]|%[0-9A-Fa-f]{2})*")
_HOST = re.compile(r"[a-z0-9._~*-]+|\[[0-9a-f:.]+\]")
_PORT = re.compile(r"[0-9]{1,5}")
_DOT = re.compile(r"(?:\.|%2e){1,2}", re.IGNORECASE)
_SEPARATOR = re.compile(r"%(?:2e|2f|5c)", re.IGNORECASE)
_SPIFFE_SEGMENT = re.compile(r"[A-Za-z0-9._*-]+")


@dataclass(frozen=True, slots=True)
class Uri:
    """A URI of another scheme than spiffe, scheme and host in lower case.

    Attributes:
        scheme: Such as ``https``.
        host: Empty if the URI has no authority, as in ``urn:…``.
        has_authority: Whether "//" follows the scheme.
        port: Text after the host's colon, or the empty string.
        segments: The path split at "/"; a rooted path starts with an empty one.
        query: Text after "?", or None.
        fragment: Text after "#", or None.
    """

    scheme: str
    has_authority: bool
    host: str
    port: str
    segments: tuple[str, ...]
    query: str | None
    fragment: str | None

    def __str__(self) -> str:
        authority = f"//{self.host}" if self.has_authority else ""
        port = f":{self.port}" if self.port else ""
        query = "" if self.query is None else f"?{self.query}"
        fragment = "" if self.fragment is None else f"#{self.fragment}"
        return f"{self.scheme}:{authority}{port}{'/'.join(self.segments)}{query}{fragment}"


def parse_uri(text: str) -> SpiffeId | Uri:
    """Reads an absolute URI; one of the spiffe scheme must be a SPIFFE ID.

    Raises:
        MalformedName: It is no URI by RFC 3986, has user information, a "." or
            ".." segment, an empty inner segment, or is no SPIFFE ID.
    """
    if text[:7].lower() == "spiffe:":
        try:
            return SpiffeId.parse(text)
        except InvalidSpiffeId as error:
            raise MalformedName(str(error)) from None
    uri = _split(text)
    if "*" in uri.host:
        raise MalformedName("a URI's host has no wildcard")
    return uri


def _split(text: str) -> Uri:
    if len(text) > MAX_URI:
        raise MalformedName(f"a URI has at most {MAX_URI} characters")
    if not _CHARACTERS.fullmatch(text):
        raise MalformedName("a URI has only the ASCII characters of RFC 3986")
    scheme, colon, rest = text.partition(":")
    if not colon or not _SCHEME.fullmatch(scheme):
        raise MalformedName("a URI starts with a scheme, such as https://")
    rest, hash_sign, fragment = rest.partition("#")
    rest, question_mark, query = rest.partition("?")
    has_authority = rest.startswith("//")
    host = port = ""
    if has_authority:
        authority, slash, path = rest[2:].partition("/")
        host, port = _split_authority(authority)
        rest = slash + path
    elif not rest:
        raise MalformedName("a URI has more than a scheme")
    segments = tuple(rest.split("/"))
    # The first may be empty (a rooted path), and the last (a trailing slash).
    if any(not segment for segment in segments[1:-1]):
        raise MalformedName("a URI's path has no empty segment")
    if any(_DOT.fullmatch(segment) for segment in segments):
        raise MalformedName("a URI's path has no '.' or '..' segment")
    if any(_SEPARATOR.search(segment) for segment in segments):
        # A reader that decodes before it splits would see another path.
        raise MalformedName("a URI's path has no encoded '.', '/' or '\\'")
    if any(character in segment for segment in segments for character in "[]"):
        raise MalformedName("a URI's path has no brackets")
    return Uri(
        scheme.lower(),
        has_authority,
        host,
        port,
        segments,
        query if question_mark else None,
        fragment if hash_sign else None,
    )


def _split_authority(authority: str) -> tuple[str, str]:
    if "@" in authority:
        raise MalformedName("a URI in a certificate has no user information")
    host, port = authority.lower(), ""
    if not host.endswith("]") and ":" in host:
        host, _, port = host.rpartition(":")
        if not _PORT.fullmatch(port) or int(port) > 65_535:
            raise MalformedName("a URI's port is a number up to 65535")
    if not _HOST.fullmatch(host) or not all(host.split(".")):
        raise MalformedName("a URI's host is a name or an IP address")
    return host, port


@dataclass(frozen=True, slots=True)
class _Path:
    """Path segments, each a glob of its own; with is_open, more may follow."""

    segments: tuple[Glob, ...]
    is_open: bool

    @classmethod
    def of(cls, segments: tuple[str, ...], *, first: int) -> _Path:
        """Reads segments; a last one that is "*" alone takes one or more.

        Args:
            segments: The pattern's segments.
            first: Index of the first segment that a "/" stands before.
        """
        is_open = len(segments) > first and segments[-1] == "*"
        closed = segments[:-1] if is_open else segments
        return cls(tuple(Glob(segment) for segment in closed), is_open)

    def matches(self, segments: tuple[str, ...]) -> bool:
        count = len(self.segments)
        if self.is_open:
            if len(segments) <= count or not segments[count]:
                return False
        elif len(segments) != count:
            return False
        return all(
            (bool(segment) or not glob.pattern) and glob.matches(segment)
            for glob, segment in zip(self.segments, segments, strict=False)
        )


@dataclass(frozen=True, slots=True)
class SpiffePattern:
    """``spiffe://<trust domain>/<path with globs>``; the trust domain is exact."""

    trust_domain: TrustDomain
    path: _Path

    def allows(self, uri: SpiffeId | Uri, own: TrustDomain) -> bool:
        """Tells whether the pattern allows the URI; own is not looked at."""
        return (
            isinstance(uri, SpiffeId)
            and uri.trust_domain == self.trust_domain
            and self.path.matches(uri.segments)
        )


@dataclass(frozen=True, slots=True)
class WebPattern:
    """A pattern of another scheme. "*" stays in a host label, segment, query or fragment."""

    scheme: str
    has_authority: bool
    host: tuple[Glob, ...]
    port: str
    path: _Path
    query: Glob | None
    fragment: Glob | None

    def allows(self, uri: SpiffeId | Uri, own: TrustDomain) -> bool:
        """Tells whether the pattern allows the URI; own is not looked at."""
        if isinstance(uri, SpiffeId) or uri.scheme != self.scheme:
            return False
        labels = uri.host.split(".")
        return (
            uri.has_authority == self.has_authority
            and uri.port == self.port
            and len(labels) == len(self.host)
            and all(
                (bool(label) or not glob.pattern) and glob.matches(label)
                for glob, label in zip(self.host, labels, strict=True)
            )
            and self.path.matches(uri.segments)
            and _fits(self.query, uri.query)
            and _fits(self.fragment, uri.fragment)
        )


def _fits(glob: Glob | None, text: str | None) -> bool:
    if glob is None or text is None:
        return glob is None and text is None
    return glob.matches(text)


@dataclass(frozen=True, slots=True)
class AnyUri:
    """The pattern "*": any URI, and any SPIFFE ID of the service's own trust domain."""

    def allows(self, uri: SpiffeId | Uri, own: TrustDomain) -> bool:
        """Tells whether the URI is allowed."""
        return not isinstance(uri, SpiffeId) or uri.trust_domain == own


UriPattern = SpiffePattern | WebPattern | AnyUri


def parse_pattern(text: str) -> UriPattern:
    """Reads one entry of allowed_uri_sans, rendered if it is a template.

    Raises:
        MalformedName: No URI could ever fit, or the pattern leaves scheme or
            trust domain open.
    """
    if text == "*":
        return AnyUri()
    if text[:7].lower() == "spiffe:":
        return _spiffe_pattern(text)
    parts = _split(text)
    return WebPattern(
        parts.scheme,
        parts.has_authority,
        tuple(Glob(label) for label in parts.host.split(".")),
        parts.port,
        _Path.of(parts.segments, first=1),
        None if parts.query is None else Glob(parts.query),
        None if parts.fragment is None else Glob(parts.fragment),
    )


def _spiffe_pattern(text: str) -> SpiffePattern:
    if not text.startswith("spiffe://"):
        raise MalformedName("a SPIFFE pattern starts with 'spiffe://', in lower case")
    if len(text) > MAX_URI:
        raise MalformedName(f"a SPIFFE pattern has at most {MAX_URI} characters")
    name, slash, path = text[len("spiffe://") :].partition("/")
    if "*" in name:
        raise MalformedName("a SPIFFE pattern names its trust domain exactly, without '*'")
    try:
        trust_domain = TrustDomain(name)
    except InvalidSpiffeId as error:
        raise MalformedName(str(error)) from None
    if not slash:
        raise MalformedName(
            "the SPIFFE ID of a workload has a path; end the pattern in '/*' to allow any"
        )
    segments = tuple(path.split("/"))
    for segment in segments:
        if segment in ("", ".", "..") or not _SPIFFE_SEGMENT.fullmatch(segment):
            raise MalformedName(
                "a SPIFFE pattern's segments have letters, digits, '.', '-', '_' and '*', "
                "and none is empty, '.' or '..'"
            )
    return SpiffePattern(trust_domain, _Path.of(segments, first=0))
