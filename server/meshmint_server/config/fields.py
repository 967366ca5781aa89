"""What settings are made of: addresses, durations, and the base of every section."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from meshmint_server.policy.durations import format_duration, parse_duration
from meshmint_server.spiffe import InvalidSpiffeId, TrustDomain

__all__ = [
    "HostPort",
    "OptionalTcpAddress",
    "PositiveDuration",
    "Section",
    "TcpAddress",
    "UnixSocket",
    "WholeSeconds",
    "parse_address",
    "parse_trust_domain",
]


@dataclass(frozen=True, slots=True)
class HostPort:
    """A TCP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class UnixSocket:
    """A unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        return True


_TCP = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]\s]+)):(?P<port>[0-9]{1,5})")


def parse_address(value: object) -> HostPort | UnixSocket:
    """An address of either kind; ValueError if it is none."""
    if isinstance(value, HostPort | UnixSocket):
        return value
    if isinstance(value, str):
        if value.startswith("unix:/"):
            return UnixSocket(value.removeprefix("unix:"))
        match = _TCP.fullmatch(value)
        if match and 0 < int(match["port"]) < 65536:
            return HostPort(match["v6"] or match["host"], int(match["port"]))
    raise ValueError("must be 'host:port', '[ipv6]:port' or 'unix:/path'")


def _tcp_address(value: object) -> HostPort:
    address = parse_address(value)
    if isinstance(address, UnixSocket):
        raise ValueError("must be 'host:port' or '[ipv6]:port'")
    return address


def _optional_tcp_address(value: object) -> HostPort | None:
    return None if value is None else _tcp_address(value)


def parse_trust_domain(value: object) -> TrustDomain:
    """A trust domain; ValueError if it is none."""
    if isinstance(value, TrustDomain):
        return value
    if not isinstance(value, str):
        raise ValueError("must be text, such as 'example.org'")
    try:
        return TrustDomain(value)
    except InvalidSpiffeId as error:
        raise ValueError(str(error)) from error


def _positive(value: timedelta) -> timedelta:
    if value <= timedelta(0):
        raise ValueError("must be longer than 0")
    return value


def _whole_seconds(value: timedelta) -> timedelta:
    # The bundle tells it in whole seconds (SPIFFE Trust Domain and Bundle, section 4.1.3).
    if value % timedelta(seconds=1) or value > timedelta(days=365):
        raise ValueError("must be whole seconds, and at most a year")
    return value


TcpAddress = Annotated[HostPort, BeforeValidator(_tcp_address), PlainSerializer(str)]
OptionalTcpAddress = Annotated[
    HostPort | None,
    BeforeValidator(_optional_tcp_address),
    PlainSerializer(str, when_used="unless-none"),
]
PositiveDuration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    AfterValidator(_positive),
    PlainSerializer(format_duration, when_used="json"),
]
WholeSeconds = Annotated[PositiveDuration, AfterValidator(_whole_seconds)]


class Section(BaseModel):
    """A part of the configuration: never changed, and nothing in it that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
