"""DNS names and e-mail addresses in one normal form, for CN and SAN alike.

Normal form: lower case, internationalised labels as A-labels (IDNA 2008 with
the UTS 46 mapping), no trailing dot. Nothing here knows of roles.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import idna

__all__ = ["DnsName", "EmailAddress", "MalformedName", "parse_dns_name", "parse_email", "parse_ip"]

MAX_NAME = 253
MAX_LABEL = 63
MAX_EMAIL = 254
MAX_LOCAL_PART = 64
_MAX_INPUT = 1024  # before IDNA, whose work grows with the input

_LDH = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_LDH_LABEL = re.compile(_LDH)
_PLAIN_HOST = re.compile(rf"(?:\*\.)?(?:{_LDH}\.)*{_LDH}")
_LOOSE_LABEL = re.compile(r"[a-z0-9_-]+")
_LOCAL_PART = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")


class MalformedName(ValueError):
    """The text is not a name of its kind; the message says why."""


@dataclass(frozen=True, slots=True)
class DnsName:
    """A DNS name in normal form.

    Attributes:
        text: The whole name, such as ``*.example.com``.
        base: The name without its wildcard label.
        is_hostname: Whether every label has only letters, digits and inner hyphens.
    """

    text: str
    base: str
    is_hostname: bool

    @property
    def is_wildcard(self) -> bool:
        """Whether the left label is "*"."""
        return len(self.text) != len(self.base)


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """An e-mail address; the local part as given, the host in normal form."""

    local_part: str
    host: DnsName

    @property
    def text(self) -> str:
        """The whole address."""
        return f"{self.local_part}@{self.host.text}"


def parse_dns_name(text: str) -> DnsName:
    """Reads a DNS name, which may have "*" as its whole left label (RFC 9525 section 6.3).

    Raises:
        MalformedName: It is empty, too long, has a trailing dot, an empty label,
            a character outside letters, digits, "-" and "_", a "*" elsewhere, a
            label that IDNA 2008 refuses, or reads as an IP address.
    """
    if len(text) > _MAX_INPUT:
        raise MalformedName(f"a DNS name has at most {MAX_NAME} characters")
    name = text.lower() if text.isascii() else _map_idn(text)
    if not name:
        raise MalformedName("a DNS name cannot be empty")
    if name.endswith("."):
        raise MalformedName(
            "leave out the trailing dot: names in certificates have none (RFC 5280 section 4.2.1.6)"
        )
    is_plain = _PLAIN_HOST.fullmatch(name) is not None
    if not is_plain or "xn--" in name:
        name, is_plain = _check_labels(name)
    if len(name) > MAX_NAME:
        raise MalformedName(f"a DNS name has at most {MAX_NAME} characters")
    base = name[2:] if name.startswith("*.") else name
    last_label = base.rpartition(".")[2]
    if last_label.isdigit() and "." in base:
        raise MalformedName(
            "a DNS name cannot end in a number; ask for an IP address in ip_addresses"
        )
    return DnsName(name, base, is_plain)


def _map_idn(text: str) -> str:
    try:
        mapped = idna.uts46_remap(text, std3_rules=False, transitional=False)
    except (idna.IDNAError, UnicodeError):
        raise MalformedName("it is not an internationalised name by IDNA 2008 (UTS 46)") from None
    if mapped.count("*") != text.count("*"):
        # Full-width and small asterisks become "*", and would get past whoever looks for one.
        raise MalformedName("a wildcard is written with the ASCII character '*' alone")
    return mapped.lower()


def _check_labels(name: str) -> tuple[str, bool]:
    """Checks each label; returns the name in A-labels and whether it is a host name."""
    labels = name.split(".")
    is_hostname = True
    checked = []
    for position, label in enumerate(labels):
        if not label:
            raise MalformedName("a DNS name has no empty label")
        if "*" in label:
            if label != "*" or position or len(labels) == 1:
                raise MalformedName(
                    "a wildcard is a whole label, the leftmost, of a longer name: *.example.com"
                )
            checked.append(label)
            continue
        ascii_label = _to_a_label(label)
        if len(ascii_label) > MAX_LABEL:
            raise MalformedName(f"a label of a DNS name has at most {MAX_LABEL} characters")
        if not _LOOSE_LABEL.fullmatch(ascii_label):
            raise MalformedName("a DNS name has only letters, digits, '-', '_' and '.'")
        if not _LDH_LABEL.fullmatch(ascii_label):
            is_hostname = False
        checked.append(ascii_label)
    return ".".join(checked), is_hostname


def _to_a_label(label: str) -> str:
    if label.isascii() and not label.startswith("xn--"):
        return label
    try:
        encoded = idna.alabel(label).decode("ascii")
    except (idna.IDNAError, UnicodeError):
        raise MalformedName("a label is not valid by IDNA 2008 (RFC 5891)") from None
    if label.isascii() and encoded != label:
        raise MalformedName("a label is not valid by IDNA 2008 (RFC 5891)")
    return encoded


def parse_email(text: str) -> EmailAddress:
    """Reads an e-mail address: an unquoted ASCII local part and a DNS name.

    Raises:
        MalformedName: It is anything else; others cannot be written as an
            rfc822Name (RFC 5280 section 4.2.1.6).
    """
    local_part, at, host = text.rpartition("@")
    if not at or len(local_part) > MAX_LOCAL_PART or not _LOCAL_PART.fullmatch(local_part):
        raise MalformedName("it is not an e-mail address such as user@example.com")
    name = parse_dns_name(host)
    if name.is_wildcard:
        raise MalformedName("an e-mail address has no wildcard")
    address = EmailAddress(local_part, name)
    if len(address.text) > MAX_EMAIL:
        raise MalformedName(f"an e-mail address has at most {MAX_EMAIL} characters")
    return address


def parse_ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Reads an IP address without zone or prefix.

    An IPv4-mapped IPv6 address (RFC 4291 section 2.5.5.2) becomes the IPv4 address that
    it stands for: verifiers take the two for one, so networks must be asked about that.

    Raises:
        MalformedName: It is anything else.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise MalformedName("it is not an IPv4 or IPv6 address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise MalformedName("an IP address in a certificate has no zone")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
