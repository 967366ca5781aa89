"""Types of a role's fields: how each may be spelled, and what it becomes.

Spellings are Vault's: lists may be comma-separated text, durations seconds or
"72h", booleans "true" or "1". Only single fields are judged here.
"""

from __future__ import annotations

import ipaddress
import json
import re
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from cryptography import x509
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from meshmint_server.policy import durations, usages

__all__ = [
    "CommaList",
    "Duration",
    "ExtKeyUsages",
    "IpNetworks",
    "KeyUsages",
    "Lifetime",
    "NotAfterBound",
    "Oids",
    "PolicyIdentifier",
    "PolicyIdentifiers",
    "RoleName",
    "SignatureBits",
    "Time",
]

_ROLE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


def _role_name(name: str) -> str:
    if not _ROLE_NAME.fullmatch(name):
        raise ValueError(
            'a name has letters, digits, "-", "_" and ".", at most 128, and does not start with "."'
        )
    return name


def _split_commas(value: object) -> object:
    if value is None:
        return ()
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        stripped = [_text(item) for item in value]
        return tuple(dict.fromkeys(item for item in stripped if item != ""))
    raise ValueError("write a list, or text with commas")


def _text(item: object) -> object:
    """Returns text for what YAML reads as a number, such as a postal code."""
    if isinstance(item, int) and not isinstance(item, bool):
        return str(item)
    return item.strip() if isinstance(item, str) else item


def _number(value: object) -> object:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _lifetime(value: object) -> timedelta | None:
    if value is None or value == "":
        return None
    return durations.parse_duration(value) or None


def _time(value: object) -> datetime | None:
    return None if value is None or value == "" else durations.parse_time(value)


def _not_after_bound(value: object) -> object:
    if value is None or value == "":
        return "permit"
    if isinstance(value, str) and value in ("permit", "ttl-limited", "forbid"):
        return value
    try:
        return durations.format_time(durations.parse_time(value))
    except ValueError:
        raise ValueError('write "permit", "ttl-limited", "forbid" or an RFC 3339 time') from None


def _key_usages(names: tuple[str, ...]) -> tuple[str, ...]:
    known = {usages.parse_key_usage(name) for name in names}
    return tuple(sorted(known))


def _ext_key_usages(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        usages.parse_ext_key_usage(name)
    return names


def _oids(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        usages.parse_oid(text)
    return texts


def _networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is not a network such as 10.0.0.0/8") from None
        if "/" not in text:
            raise ValueError(f"write {text!r} with its prefix, such as {text}/32")
    return texts


def _policies(value: object) -> object:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("the text starts like a JSON list and is none") from None
    if isinstance(value, list | tuple):
        return tuple({"oid": item} if isinstance(item, str) else item for item in value)
    split = _split_commas(value)
    return tuple({"oid": oid} for oid in split) if isinstance(split, tuple) else split


def _policy_oid(text: str) -> str:
    usages.parse_oid(text)
    return text


def _notice(text: str) -> str:
    if not (text.isprintable() or not text):
        raise ValueError("a notice has no control characters")
    return text


def _cps(text: str) -> str:
    if text and not (text.isascii() and text.isprintable() and ":" in text and " " not in text):
        raise ValueError("a certification practice statement is named by a URI")
    return text


class PolicyIdentifier(BaseModel):
    """A certificate policy (RFC 5280 section 4.2.1.4).

    Attributes:
        oid: Object identifier, dotted decimal.
        notice: Text of a user notice, at most 200 characters.
        cps: URI of a certification practice statement.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    oid: Annotated[str, AfterValidator(_policy_oid)]
    notice: Annotated[str, Field(max_length=200), AfterValidator(_notice)] = ""
    cps: Annotated[str, Field(max_length=2048), AfterValidator(_cps)] = ""

    def build(self) -> x509.PolicyInformation:
        """Builds its place in the extension."""
        qualifiers: list[str | x509.UserNotice] = []
        if self.cps:
            qualifiers.append(self.cps)
        if self.notice:
            qualifiers.append(x509.UserNotice(None, self.notice))
        return x509.PolicyInformation(x509.ObjectIdentifier(self.oid), qualifiers or None)


def _write_duration(duration: timedelta | None) -> str | None:
    return None if duration is None else durations.format_duration(duration)


def _write_time(moment: datetime | None) -> str | None:
    return None if moment is None else durations.format_time(moment)


def _write_policies(policies: tuple[PolicyIdentifier, ...]) -> list[dict[str, Any]]:
    return [policy.model_dump(exclude_defaults=True) for policy in policies]


RoleName = Annotated[str, AfterValidator(_role_name)]
CommaList = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
KeyUsages = Annotated[CommaList, AfterValidator(_key_usages)]
ExtKeyUsages = Annotated[CommaList, AfterValidator(_ext_key_usages)]
Oids = Annotated[CommaList, AfterValidator(_oids)]
IpNetworks = Annotated[CommaList, AfterValidator(_networks)]
PolicyIdentifiers = Annotated[
    tuple[PolicyIdentifier, ...], BeforeValidator(_policies), PlainSerializer(_write_policies)
]
SignatureBits = Annotated[Literal[0, 256, 384, 512], BeforeValidator(_number)]
# A lifetime may be unset (0 or empty), a plain duration may not.
Lifetime = Annotated[timedelta | None, BeforeValidator(_lifetime), PlainSerializer(_write_duration)]
Duration = Annotated[
    timedelta, BeforeValidator(durations.parse_duration), PlainSerializer(_write_duration)
]
Time = Annotated[datetime | None, BeforeValidator(_time), PlainSerializer(_write_time)]
NotAfterBound = Annotated[str, BeforeValidator(_not_after_bound)]
