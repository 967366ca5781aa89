"""The server's configuration: one YAML file, parsed into types that cannot be wrong.

It sits above the rooms because it is made of the settings that they define;
only `app.py` builds objects from it. It never holds a secret, only where one is.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from meshmint_server.audit import LogFormat, LogLevel
from meshmint_server.authn import AuthenticatorSettings, refuse_conflicts
from meshmint_server.keys import KeySettings
from meshmint_server.policy import CallerMatcher
from meshmint_server.policy.durations import format_duration, parse_duration
from meshmint_server.spiffe import InvalidSpiffeId, TrustDomain
from meshmint_server.store import parse_store_url

__all__ = [
    "BundleEndpointSettings",
    "Config",
    "ConfigError",
    "HostPort",
    "HttpSettings",
    "LogSettings",
    "TlsSettings",
    "UnixSocket",
]


class ConfigError(Exception):
    """The configuration cannot be used; the message says where and what to do."""


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


def _address(value: object) -> HostPort | UnixSocket:
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
    address = _address(value)
    if isinstance(address, UnixSocket):
        raise ValueError("must be 'host:port' or '[ipv6]:port'")
    return address


def _optional_tcp_address(value: object) -> HostPort | None:
    return None if value is None else _tcp_address(value)


def _trust_domain(value: object) -> TrustDomain:
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


def _store_url(value: str) -> str:
    parse_store_url(value)
    return value


def _conflict_free(
    value: tuple[AuthenticatorSettings, ...],
) -> tuple[AuthenticatorSettings, ...]:
    refuse_conflicts(value)
    return value


PositiveDuration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    AfterValidator(_positive),
    PlainSerializer(format_duration, when_used="json"),
]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class TlsSettings(_Section):
    """Where the gRPC listener's certificate comes from.

    Attributes:
        mode: ``own``: issued by this service itself, renewed without a restart;
            ``files``: read from files, and again whenever they change; ``none``:
            no TLS, on loopback or a unix socket only.
        dns_names: The service's names: in an own certificate, and granted to no caller.
        ip_addresses: Its addresses, likewise.
        lifetime: Lifetime of an own certificate.
        certificate: Chain file, PEM, leaf first.
        key: Key file, PEM.
    """

    mode: Literal["own", "files", "none"] = "own"
    dns_names: tuple[str, ...] = ("localhost",)
    ip_addresses: tuple[str, ...] = ()
    lifetime: PositiveDuration = timedelta(hours=24)
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _check_files(self) -> TlsSettings:
        if self.mode == "files" and not (self.certificate and self.key):
            raise ValueError("mode 'files' needs 'certificate' and 'key'")
        if self.mode != "files" and (self.certificate or self.key):
            raise ValueError("'certificate' and 'key' go with mode 'files'")
        return self


class HttpSettings(_Section):
    """The HTTP port for health and metrics. Anybody who reaches it may read it."""

    listen: Annotated[HostPort, BeforeValidator(_tcp_address), PlainSerializer(str)] = HostPort(
        "127.0.0.1", 8080
    )


class BundleEndpointSettings(_Section):
    """The SPIFFE bundle endpoint: the trust bundle over HTTPS, for anybody who asks.

    Attributes:
        listen: Address, `host:port`; without it there is no bundle endpoint.
        profile: ``https_web``: with a certificate from files, of a CA that browsers
            trust; ``https_spiffe``: with an X509-SVID of the service itself,
            ``spiffe://<trust domain>/meshmint/server``, renewed without a restart.
        certificate: Chain file of profile ``https_web``, PEM, leaf first; read again
            whenever it changes.
        key: Its key file, PEM.
        path: Path of the URL.
        refresh_hint: How often consumers should look again; WatchTrustBundle tells it too.
    """

    listen: Annotated[
        HostPort | None,
        BeforeValidator(_optional_tcp_address),
        PlainSerializer(str, when_used="unless-none"),
    ] = None
    profile: Literal["https_web", "https_spiffe"] = "https_spiffe"
    certificate: Path | None = None
    key: Path | None = None
    path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~-]+)*/?$", min_length=1)] = "/"
    refresh_hint: Annotated[PositiveDuration, AfterValidator(_whole_seconds)] = timedelta(minutes=5)

    @model_validator(mode="after")
    def _check_files(self) -> BundleEndpointSettings:
        has_files = self.certificate is not None or self.key is not None
        if self.listen is None:
            if has_files:
                raise ValueError("'certificate' and 'key' need 'listen'")
        elif self.profile == "https_web" and not (self.certificate and self.key):
            raise ValueError("profile 'https_web' needs 'certificate' and 'key'")
        elif self.profile != "https_web" and has_files:
            raise ValueError("'certificate' and 'key' go with profile 'https_web'")
        return self


class LogSettings(_Section):
    """The log, on standard output."""

    format: LogFormat = "json"
    level: LogLevel = "info"


class Config(_Section):
    """Everything `meshmintd serve` needs to know.

    Attributes:
        trust_domain: The SPIFFE trust domain that this service issues for.
        listen: Address of the gRPC listener.
        tls: Its certificate.
        http: The HTTP port.
        bundle_endpoint: The SPIFFE bundle endpoint.
        store: Where records, roles and issuers are kept: ``sqlite:////absolute/path.db``
            or ``postgresql://user@host/database?password_file=/path``.
        keys: Where signing keys are.
        authenticators: Who vouches for callers; at least one is needed to issue.
        admins: Callers that may use AdminService; a matcher that matches everybody is refused.
        default_ttl: Lifetime where neither role nor request says one.
        max_ttl: The longest lifetime that any role can give.
        workers: Number of worker processes.
        max_watchers: The most WatchTrustBundle streams that one worker keeps open.
        request_time_limit: The longest that one request may take.
        drain: How long requests in flight may take at the end.
        log: The log.
    """

    trust_domain: Annotated[TrustDomain, BeforeValidator(_trust_domain), PlainSerializer(str)]
    listen: Annotated[HostPort | UnixSocket, BeforeValidator(_address), PlainSerializer(str)] = (
        HostPort("127.0.0.1", 8443)
    )
    tls: TlsSettings = TlsSettings()
    http: HttpSettings = HttpSettings()
    bundle_endpoint: BundleEndpointSettings = BundleEndpointSettings()
    # It may hold a password, however little we ask for one.
    store: Annotated[str, AfterValidator(_store_url), Field(repr=False)]
    keys: KeySettings
    authenticators: Annotated[
        tuple[AuthenticatorSettings, ...], AfterValidator(_conflict_free)
    ] = ()
    admins: tuple[CallerMatcher, ...] = ()
    default_ttl: PositiveDuration = timedelta(hours=768)
    max_ttl: PositiveDuration = timedelta(hours=768)
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    max_watchers: Annotated[int, Field(ge=0)] = 10_000
    request_time_limit: PositiveDuration = timedelta(seconds=10)
    drain: PositiveDuration = timedelta(seconds=20)
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check_whole(self) -> Config:
        if self.tls.mode == "none" and not self.listen.is_loopback:
            raise ValueError(
                "without TLS the server listens only on loopback or a unix socket: "
                "set tls.mode to 'own' or 'files', or listen on 127.0.0.1"
            )
        if any(matcher.is_open for matcher in self.admins):
            raise ValueError(
                "admins: an empty matcher makes every caller an administrator: "
                "name the authenticator and the caller"
            )
        if self.default_ttl > self.max_ttl:
            raise ValueError("default_ttl is longer than max_ttl")
        return self

    @classmethod
    def load(cls, path: Path) -> Config:
        """Reads a configuration file.

        Raises:
            ConfigError: It cannot be read, or something in it is wrong; the
                message names every place.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
        try:
            # As a stream: errors in a text quote its lines, and one of them may hold a password.
            document = yaml.load(StringIO(text), _UniqueKeyLoader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: is not YAML: {error}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"{path}: must be a mapping with 'trust_domain', 'store', 'keys', …")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problems = "\n".join(
                f"  {'.'.join(map(str, problem['loc'])) or '(whole file)'}: "
                f"{problem['msg'].removeprefix('Value error, ')}"
                for problem in error.errors(include_url=False, include_input=False)
            )
            raise ConfigError(f"{path}: cannot be used:\n{problems}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
