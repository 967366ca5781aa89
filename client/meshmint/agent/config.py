"""The whole of agent.yaml, read strictly: unknown fields and keys that stand twice are refused.

It never holds a secret, only where one is. A message about it names the place, and
never quotes a value.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from meshmint.agent.config_file import problems_of, read_document
from meshmint.agent.fields import AbsolutePath, Duration, LoopbackPort, Section
from meshmint.agent.outputs import OutputSettings, TemplateOutput
from meshmint.agent.reactions import ReactionSettings
from meshmint.agent.sockets import SocketSettings
from meshmint.errors import ConfigurationError
from meshmint.keys import KeyAlgorithm
from meshmint.requests import CertificateOptions
from meshmint.tls import is_local

__all__ = [
    "AgentConfig",
    "AuthSettings",
    "CertificateSettings",
    "LogSettings",
    "NamesSettings",
    "RenewalSettings",
    "ServerSettings",
    "TemplateSettings",
    "WindowSettings",
]

# Names of files are made of it, and labels of metrics.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ServerSettings(Section):
    """The service that signs.

    Attributes:
        address: Where it is: `host:port`, or `unix:/path`.
        ca_file: Roots of its own TLS certificate, PEM; read again whenever it changes. Without it
            the system's roots count.
        server_name: The name in its certificate, where that is not the host of `address`.
        insecure: Without TLS; only for a loopback address or a unix socket.
        timeout: For a call with all its retries.
    """

    address: Annotated[str, Field(min_length=1)]
    ca_file: AbsolutePath | None = None
    server_name: str | None = None
    insecure: bool = False
    timeout: Duration = timedelta(seconds=20)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.address.startswith(("http://", "https://")):
            raise ValueError("address: write host:port, without a scheme")
        if self.insecure and not is_local(self.address):
            raise ValueError(
                "insecure: only a loopback address or a unix socket may be used without TLS, "
                "because the token would cross the network in the clear"
            )
        if self.insecure and self.ca_file:
            raise ValueError("insecure and ca_file do not go together: take one of them out")
        return self


def _environment_name(value: str) -> str:
    if not _ENVIRONMENT_NAME.fullmatch(value):
        raise ValueError("write the name of an environment variable, such as MESHMINT_TOKEN")
    return value


class AuthSettings(Section):
    """Where the agent's own token comes from: exactly one of three.

    Attributes:
        token_file: A file with the token, such as a projected service-account token; read again
            at each use.
        command: A program and its arguments, without a shell; it prints the token on stdout.
            Run again at each use; what it writes to stderr goes to the agent's.
        environment: The name of an environment variable that holds the token.
        command_timeout: How long `command` may take, before it is killed.
    """

    token_file: AbsolutePath | None = None
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    environment: Annotated[str, AfterValidator(_environment_name)] | None = None
    command_timeout: Duration = timedelta(seconds=10)

    @model_validator(mode="after")
    def _check(self) -> Self:
        given = [
            name
            for name in ("token_file", "command", "environment")
            if getattr(self, name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "give exactly one of token_file, command and environment"
                + (f", not {' and '.join(given)}" if given else "")
            )
        if self.command and not Path(self.command[0]).is_absolute():
            raise ValueError("command: write the whole path of the program, beginning with '/'")
        return self


def _ip_address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise ValueError("write an IPv4 or IPv6 address") from error


class NamesSettings(Section):
    """What the certificate is to be called. Without any name a role for X509-SVIDs fills in the
    agent's own SPIFFE ID.

    Attributes:
        common_name: The subject's common name; also becomes a DNS or e-mail SAN.
        dns_names: DNS names.
        ip_addresses: IPv4 or IPv6 addresses.
        uris: URIs, at most one of them a SPIFFE ID.
        email_addresses: E-mail addresses.
        subject_serial_number: The subject's serialNumber attribute.
        user_ids: Subject UID attributes.
        exclude_common_name_from_sans: Keeps the common name out of the SANs.
    """

    common_name: str = ""
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[Annotated[str, AfterValidator(_ip_address)], ...] = ()
    uris: tuple[str, ...] = ()
    email_addresses: tuple[str, ...] = ()
    subject_serial_number: str = ""
    user_ids: tuple[str, ...] = ()
    exclude_common_name_from_sans: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(uri.lower().startswith("spiffe:") for uri in self.uris) > 1:
            raise ValueError("uris: a certificate carries at most one SPIFFE ID")
        return self


def _clock_time(value: object) -> object:
    # YAML 1.1 reads 22:30 as a number of base 60.
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 24 * 60:
        return time(value // 60, value % 60)
    if isinstance(value, str) and not re.fullmatch(r"[0-2]?[0-9]:[0-5][0-9]", value):
        raise ValueError("write a time of the day like '22:30'")
    if isinstance(value, str):
        hour, minute = map(int, value.split(":"))
        if hour < 24:
            return time(hour, minute)
    if isinstance(value, time):
        return value
    raise ValueError("write a time of the day like '22:30'")


_ClockTime = Annotated[time, BeforeValidator(_clock_time)]


class WindowSettings(Section):
    """A part of the day, every day; over midnight if it ends before it starts.

    Attributes:
        start: Its first minute, such as `'22:30'`.
        end: The minute after its last one.
        zone: `utc`, or `local` for the machine's own time.
    """

    start: _ClockTime
    end: _ClockTime
    zone: Literal["utc", "local"] = "utc"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.start == self.end:
            raise ValueError("the window is empty: start and end are the same")
        return self


def _with_zone(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("write the time with a zone, such as 2030-01-31T08:00:00Z")
    return moment


class RenewalSettings(Section):
    """When a certificate is renewed, long before its end. `window` and `not_before` never keep it
    past nine tenths of its lifetime.

    Attributes:
        fraction: The share of the lifetime after which it is renewed.
        jitter: The share of the lifetime by which that is moved at most, at random, to either side,
            so that many agents do not come at once.
        not_before: No renewal before this moment, such as the end of a change freeze.
        window: Renewals only in this part of the day.
    """

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.67
    jitter: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    not_before: Annotated[datetime, AfterValidator(_with_zone)] | None = None
    window: WindowSettings | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.fraction - self.jitter <= self.fraction + self.jitter <= 0.9:
            raise ValueError(
                "fraction with jitter added or taken away must stay above 0 and at most 0.9, "
                "so that there is time left to try again"
            )
        return self


def _certificate_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            "a name has 1 to 64 of a-z, 0-9, '.', '_' and '-', and begins and ends with a-z or 0-9"
        )
    return value


class CertificateSettings(Section):
    """One certificate that the agent keeps.

    Attributes:
        name: What the agent calls it: in its log, its metrics and its state.
        role: The role of the service; empty if exactly one fits the agent.
        names: What the certificate is to be called.
        ttl: The lifetime to ask for; without it the role decides.
        key: The kind of key.
        key_from: `agent`: the key is made here and never travels. `service`: the service makes it,
            and it crosses the network.
        renewal: When it is renewed.
        outputs: Where it is written.
        after_change: What is done after outputs have changed.
    """

    name: Annotated[str, AfterValidator(_certificate_name)]
    role: str = ""
    names: NamesSettings = NamesSettings()
    ttl: Duration | None = None
    key: KeyAlgorithm = "ec-p256"
    key_from: Literal["agent", "service"] = "agent"
    renewal: RenewalSettings = RenewalSettings()
    outputs: tuple[OutputSettings, ...] = ()
    after_change: tuple[ReactionSettings, ...] = ()

    def options(self) -> CertificateOptions:
        """Names and lifetime, as the client takes them."""
        options: CertificateOptions = {
            "common_name": self.names.common_name,
            "dns_names": self.names.dns_names,
            "ip_addresses": self.names.ip_addresses,
            "uris": self.names.uris,
            "email_addresses": self.names.email_addresses,
            "subject_serial_number": self.names.subject_serial_number,
            "user_ids": self.names.user_ids,
            "exclude_common_name_from_sans": self.names.exclude_common_name_from_sans,
            "ttl": self.ttl,
        }
        return options

    def wanted(self) -> str:
        """What a kept certificate must have been asked for with, to be still good."""
        return self.model_dump_json(include={"role", "names", "key", "key_from"})


class TemplateSettings(TemplateOutput):
    """A file made from a template that sees every certificate; written first when all of them
    are there.

    Attributes:
        after_change: What is done after it has changed.
    """

    after_change: tuple[ReactionSettings, ...] = ()

    @property
    def label(self) -> str:
        """What it is called in log and status."""
        return f"template {self.destination}"


class LogSettings(Section):
    """The log, on stderr.

    Attributes:
        format: `json`, one object a line; `console`, for people; `auto`: for people on a terminal.
        level: `debug`, `info`, `warning` or `error`.
    """

    format: Literal["auto", "json", "console"] = "auto"
    level: Literal["debug", "info", "warning", "error"] = "info"


class AgentConfig(Section):
    """Top level.

    Attributes:
        server: The service that signs.
        auth: Where the agent's own token comes from.
        state_dir: The agent's own directory, mode 0700: keys and certificates that it keeps over
            restarts. One agent at a time.
        certificates: What it keeps; the first is the default identity.
        templates: Files made of all certificates together.
        sockets: Unix sockets that serve the certificates to programs.
        health: Loopback address for `/live`, `/ready`, `/status` and `/metrics`; none without it.
        log: The log.
    """

    server: ServerSettings
    auth: AuthSettings
    state_dir: AbsolutePath
    certificates: Annotated[tuple[CertificateSettings, ...], Field(min_length=1)]
    templates: tuple[TemplateSettings, ...] = ()
    sockets: tuple[SocketSettings, ...] = ()
    health: LoopbackPort | None = None
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        counted = Counter(certificate.name for certificate in self.certificates)
        twice = [name for name, count in counted.items() if count > 1]
        if twice:
            raise ValueError(f"certificates: the name {twice[0]!r} stands twice")
        places = Counter(map(str, self._places()))
        shared = [place for place, count in places.items() if count > 1]
        if shared:
            raise ValueError(f"{shared[0]} is written twice: give each output a place of its own")
        for socket in self.sockets:
            unknown = set(socket.certificates or ()) - counted.keys()
            if unknown:
                raise ValueError(
                    f"sockets: {socket.path} serves {min(unknown)!r}, and there is no such "
                    "certificate"
                )
        return self

    def _places(self) -> Iterator[Path | str]:
        """Every path that something of its own is written to."""
        for certificate in self.certificates:
            for output in certificate.outputs:
                if isinstance(output, TemplateOutput):
                    yield output.destination
                else:
                    yield output.directory
        yield from (template.destination for template in self.templates)
        yield from (socket.path for socket in self.sockets)

    @classmethod
    def load(cls, path: Path) -> AgentConfig:
        """Reads a configuration file.

        Raises:
            ConfigurationError: It cannot be read, or something in it is wrong; the message
                names every place.
        """
        document = read_document(path)
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            problems = "\n".join(f"  {problem}" for problem in problems_of(document, error))
            raise ConfigurationError(f"{path}: cannot be used:\n{problems}") from error
