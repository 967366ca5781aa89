"""A trust bundle that somebody else published, read strictly (Trust Domain and Bundle, section 4).

What is not understood is ignored where the standard says so and refused everywhere
else: a bundle that was read by halves would trust too many, or too few.
"""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning

from meshmint_server.spiffe.id import SCHEME, InvalidSpiffeId, SpiffeId, TrustDomain
from meshmint_server.spiffe.jwt_key import InvalidJwk, JwtKey, parse_jwt_key
from meshmint_server.spiffe.key_parameters import key_parameters

__all__ = ["InvalidBundle", "ReceivedBundle", "parse_bundle"]

_LARGEST = 1024 * 1024
_MOST_KEYS = 200
_LARGEST_SEQUENCE = 2**63 - 1  # what a database holds
_KEY_TYPES = ("EC", "OKP", "RSA")
_LONGEST_HINT = 366 * 86400


class InvalidBundle(ValueError):
    """The document is no trust bundle; the message says why, and quotes nothing of it."""


@dataclass(frozen=True, slots=True)
class ReceivedBundle:
    """What a bundle document says.

    Attributes:
        roots: Root certificates for X509-SVIDs, DER. None at all is a statement too:
            nobody of this trust domain is to be trusted (section 4.2).
        sequence: Its ``spiffe_sequence``, if it has one.
        refresh_hint: Its ``spiffe_refresh_hint``, if it has one.
        jwt_keys: Keys for JWT-SVIDs, each with a ``kid`` of its own.
    """

    roots: tuple[bytes, ...]
    sequence: int | None
    refresh_hint: timedelta | None
    jwt_keys: tuple[JwtKey, ...] = ()


def parse_bundle(document: bytes, trust_domain: TrustDomain) -> ReceivedBundle:
    """Reads a bundle document: a JWK Set with SPIFFE's members.

    Args:
        document: JSON in UTF-8, of at most 1 MiB.
        trust_domain: Whose bundle it shall be; the document does not say.

    Raises:
        InvalidBundle: It is none, or something in it cannot be what it claims to be.
    """
    if len(document) > _LARGEST:
        raise InvalidBundle(f"it is larger than {_LARGEST} bytes")
    try:
        members = json.loads(document.decode("utf-8"), object_pairs_hook=_without_repetition)
    except InvalidBundle:
        raise
    except (ValueError, RecursionError):  # too long a number is a plain ValueError
        raise InvalidBundle("it is not JSON in UTF-8") from None
    if not isinstance(members, dict):
        raise InvalidBundle("it is not a JSON object")
    keys = members.get("keys")
    if not isinstance(keys, list):
        raise InvalidBundle("it has no array 'keys'")
    if len(keys) > _MOST_KEYS:
        raise InvalidBundle(f"it has more than {_MOST_KEYS} keys")
    roots = [_root(key, trust_domain) for key in keys if _is_for_x509(key)]
    hint = _whole_number(members, "spiffe_refresh_hint", _LONGEST_HINT)
    return ReceivedBundle(
        roots=tuple(dict.fromkeys(roots)),
        sequence=_whole_number(members, "spiffe_sequence", _LARGEST_SEQUENCE),
        refresh_hint=None if hint is None else timedelta(seconds=hint),
        jwt_keys=_jwt_keys(keys),
    )


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidBundle("a name stands twice in one object")
    return members


def _whole_number(members: dict[str, Any], name: str, largest: int) -> int | None:
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= largest:
        raise InvalidBundle(f"'{name}' is not a whole number from 0 to {largest}")
    return value


def _is_for_x509(key: object) -> bool:
    """Whether an entry is about X509-SVIDs; others are for others (section 4.2.2)."""
    if not isinstance(key, dict):
        raise InvalidBundle("an entry of 'keys' is not an object")
    return key.get("use") == "x509-svid" and key.get("kty") in _KEY_TYPES


def _jwt_keys(keys: list[dict[str, Any]]) -> tuple[JwtKey, ...]:
    """The entries for JWT-SVIDs, the same one once."""
    found: dict[str, JwtKey] = {}
    for entry in keys:
        if entry.get("use") != "jwt-svid":
            continue
        try:
            key = parse_jwt_key(entry)
        except InvalidJwk as error:
            raise InvalidBundle(str(error)) from None
        if key is not None and found.setdefault(key.key_id, key) != key:
            raise InvalidBundle("two keys for jwt-svid have the same 'kid'")
    return tuple(found.values())


def _root(key: dict[str, Any], trust_domain: TrustDomain) -> bytes:
    chain = key.get("x5c")
    # Section 4.2.2: exactly one, and readers take the first.
    if not isinstance(chain, list) or not chain or not isinstance(chain[0], str):
        raise InvalidBundle("an entry for x509-svid has no certificate in 'x5c'")
    try:
        der = base64.b64decode(chain[0].encode("ascii"), validate=True)
        with warnings.catch_warnings():
            # What the parser warns of, such as a serial number that is not positive (RFC 5280
            # section 4.1.2.2), its next release refuses, ours and our clients' alike.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            certificate = x509.load_der_x509_certificate(der)
            parameters = key_parameters(certificate.public_key())
            extensions = certificate.extensions
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
            names = _uris(certificate)
    except x509.ExtensionNotFound:
        raise InvalidBundle("a certificate is not that of a CA") from None
    except CryptographyDeprecationWarning:
        raise InvalidBundle("a certificate in 'x5c' is not one as RFC 5280 has it") from None
    except (
        UnicodeEncodeError,
        binascii.Error,
        ValueError,
        UnsupportedAlgorithm,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise InvalidBundle("a certificate in 'x5c' cannot be read") from None
    if not constraints.ca:
        raise InvalidBundle("a certificate is not that of a CA")
    if any(key.get(name, value) != value for name, value in parameters.items()):
        raise InvalidBundle("the parameters of a key are not those of its certificate")
    if any(not _is_of(name, trust_domain) for name in names):
        raise InvalidBundle("a certificate has the SPIFFE ID of another trust domain")
    return certificate.public_bytes(Encoding.DER)


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _is_of(name: str, trust_domain: TrustDomain) -> bool:
    """Whether a CA's URI leaves it in its trust domain (X509-SVID, section 4.1)."""
    if not name.lower().startswith(SCHEME):
        return True
    try:
        return SpiffeId.parse(name).trust_domain == trust_domain
    except InvalidSpiffeId:
        return False
