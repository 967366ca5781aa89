"""Distinguished names: the role's part and the caller's, in X.500 order.

The role alone decides organisation, country and their like; of what a caller
asks for only common name, serialNumber and UID can get in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from cryptography import x509
from cryptography.x509.oid import NameOID

__all__ = ["SUBJECT_FIELDS", "build_subject", "check_serial_number", "check_subject_value"]

MAX_COMMON_NAME = 64
MAX_USER_ID = 256
MAX_SERIAL_NUMBER = 64

# Role field, attribute type, upper bound (RFC 5280 appendix A.1; X.520 for the
# last two), from the widest to the narrowest.
SUBJECT_FIELDS: Mapping[str, tuple[x509.ObjectIdentifier, int]] = {
    "country": (NameOID.COUNTRY_NAME, 2),
    "province": (NameOID.STATE_OR_PROVINCE_NAME, 128),
    "locality": (NameOID.LOCALITY_NAME, 128),
    "street_address": (NameOID.STREET_ADDRESS, 128),
    "postal_code": (NameOID.POSTAL_CODE, 40),
    "organization": (NameOID.ORGANIZATION_NAME, 64),
    "ou": (NameOID.ORGANIZATIONAL_UNIT_NAME, 64),
}

_COUNTRY = re.compile(r"[A-Z]{2}")
# PrintableString, which serialNumber must be (X.520).
_PRINTABLE_STRING = re.compile(r"[A-Za-z0-9 '()+,./:=?-]+")


def check_subject_value(field: str, value: str) -> None:
    """Checks one value of a role's subject field.

    Raises:
        ValueError: It is empty, too long, has control characters, or is no country code.
    """
    _, longest = SUBJECT_FIELDS[field]
    if field == "country":
        if not _COUNTRY.fullmatch(value):
            raise ValueError("a country is two upper-case letters (ISO 3166)")
        return
    if not value.isprintable() or not value.strip():
        raise ValueError("the value is empty or has control characters")
    if len(value) > longest:
        raise ValueError(f"the value has more than {longest} characters (RFC 5280)")


def check_serial_number(value: str) -> None:
    """Checks a subject serialNumber.

    Raises:
        ValueError: It is too long, or no PrintableString.
    """
    if len(value) > MAX_SERIAL_NUMBER:
        raise ValueError(f"a serialNumber has at most {MAX_SERIAL_NUMBER} characters")
    if not _PRINTABLE_STRING.fullmatch(value):
        raise ValueError("a serialNumber has only letters, digits, spaces and '()+,-./:=?")


def check_user_id(value: str) -> None:
    """Checks a subject UID.

    Raises:
        ValueError: It is empty, too long, or has control characters.
    """
    if not value.strip() or not value.isprintable():
        raise ValueError("a user id is not empty and has no control characters")
    if len(value) > MAX_USER_ID:
        raise ValueError(f"a user id has at most {MAX_USER_ID} characters")


def build_subject(
    role_attributes: tuple[x509.NameAttribute[str], ...],
    common_name: str,
    serial_number: str,
    user_ids: Iterable[str],
) -> x509.Name:
    """Builds the subject; everything was checked before."""
    attributes = list(role_attributes)
    if common_name:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name))
    if serial_number:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_number))
    attributes += [x509.NameAttribute(NameOID.USER_ID, user_id) for user_id in user_ids]
    return x509.Name(attributes)


def role_attributes(values: Mapping[str, tuple[str, ...]]) -> tuple[x509.NameAttribute[str], ...]:
    """Builds the role's part, values by field name, duplicates left out."""
    return tuple(
        x509.NameAttribute(oid, value)
        for field, (oid, _) in SUBJECT_FIELDS.items()
        for value in dict.fromkeys(values[field])
    )
