"""Asked-for names of every kind, from text to what a certificate holds.

Only form is judged here; whether a role allows a name is granted_names' matter.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography import x509

from meshmint_server.policy.names import (
    DnsName,
    EmailAddress,
    MalformedName,
    parse_dns_name,
    parse_email,
    parse_ip,
)
from meshmint_server.policy.other_names import encode_other_name
from meshmint_server.policy.request import Names, OtherName
from meshmint_server.policy.uris import Uri, parse_uri
from meshmint_server.spiffe import SpiffeId

__all__ = ["AskedName", "Parsed", "count_names", "parse_names"]

Parsed = (
    DnsName
    | EmailAddress
    | ipaddress.IPv4Address
    | ipaddress.IPv6Address
    | SpiffeId
    | Uri
    | OtherName
)


@dataclass(frozen=True, slots=True)
class AskedName:
    """One name asked for.

    Attributes:
        field: Path of the field it came from.
        parsed: The name in normal form; None if it is malformed.
        problem: What is wrong with it; empty if nothing is.
    """

    field: str
    parsed: Parsed | None
    problem: str = ""


def count_names(names: Names) -> int:
    """Counts the names that would become SANs, the common name's aside."""
    return (
        len(names.dns_names)
        + len(names.ip_addresses)
        + len(names.email_addresses)
        + len(names.uris)
        + len(names.other_names)
    )


def parse_names(names: Names, prefix: str) -> Iterator[AskedName]:
    """Parses every name: DNS, IP, e-mail, URI, other, in this order.

    Args:
        names: The names.
        prefix: Path of the field that holds them, such as ``names``.
    """
    yield from _parse_each(names.dns_names, f"{prefix}.dns_names", parse_dns_name)
    yield from _parse_each(names.ip_addresses, f"{prefix}.ip_addresses", parse_ip)
    yield from _parse_each(names.email_addresses, f"{prefix}.email_addresses", parse_email)
    yield from _parse_each(names.uris, f"{prefix}.uris", parse_uri)
    for index, other in enumerate(names.other_names):
        field = f"{prefix}.other_names[{index}]"
        try:
            encode_other_name(other)
        except ValueError as error:
            yield AskedName(field, None, str(error))
        else:
            yield AskedName(field, other)


def _parse_each(
    texts: tuple[str, ...], field: str, parse: Callable[[str], Parsed]
) -> Iterator[AskedName]:
    for index, text in enumerate(texts):
        try:
            yield AskedName(f"{field}[{index}]", parse(text))
        except MalformedName as error:
            yield AskedName(f"{field}[{index}]", None, str(error))


def to_general_name(name: Parsed) -> x509.GeneralName:
    """Writes a name as the SAN extension has it (RFC 5280 section 4.2.1.6)."""
    if isinstance(name, DnsName):
        return x509.DNSName(name.text)
    if isinstance(name, EmailAddress):
        return x509.RFC822Name(name.text)
    if isinstance(name, SpiffeId | Uri):
        return x509.UniformResourceIdentifier(str(name))
    if isinstance(name, OtherName):
        return encode_other_name(name)
    return x509.IPAddress(name)


def spell(name: Parsed) -> str:
    """Writes a name for people."""
    if isinstance(name, DnsName | EmailAddress):
        return name.text
    if isinstance(name, OtherName):
        return f"{name.type_id};UTF8:{name.value}"
    return str(name)
