"""What the configuration says about reactions: what is done after a change.

A reaction is a command, a signal or an HTTP call, and is known by that word. No setting
holds a secret: headers that are one are named by the files that have them.
"""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from meshmint.agent.fields import AbsolutePath, Duration, Section

__all__ = ["CommandReaction", "HttpReaction", "Reaction", "ReactionSettings", "SignalReaction"]

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")  # RFC 9110 section 5.6.2
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,100}")
_OURS = "MESHMINT_"


def _argument(value: str) -> str:
    if "\0" in value:
        raise ValueError("an argument has no zero byte")
    return value


Argument = Annotated[str, AfterValidator(_argument)]


class _Reaction(Section):
    """Attributes:
    timeout: How long one attempt may take.
    attempts: How often it is tried before it counts as failed; even then it is tried
        again later, until it succeeds.
    """

    timeout: Duration = timedelta(seconds=30)
    attempts: Annotated[int, Field(ge=1, le=100)] = 3

    @property
    def key(self) -> str:
        """The same for reactions that do the same."""
        said = self.model_dump_json(exclude={"timeout", "attempts"})
        said = f"{type(self).__name__} {said}"
        return hashlib.sha256(said.encode()).hexdigest()


def _command(value: object) -> object:
    if isinstance(value, str):
        raise ValueError(
            "write the command as a list, as no shell reads it: [systemctl, reload, nginx]"
        )
    return value


class CommandReaction(_Reaction):
    """A program that is run, without a shell.

    Attributes:
        command: The program, by its path or looked for on the agent's PATH, and its arguments.
        environment: Variables for it, beside those that say what has changed. Of the agent's
            environment it gets PATH, HOME, LANG, LC_ALL and TZ alone.
    """

    command: Annotated[tuple[Argument, ...], BeforeValidator(_command), Field(min_length=1)]
    environment: dict[str, Argument] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.command[0]:
            raise ValueError("the first word of a command names a program")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a variable: use letters, digits and _")
            if name.startswith(_OURS):
                raise ValueError(f"{name!r} is set by the agent: use a name without {_OURS}")
        return self

    def __str__(self) -> str:
        return f"the command {self.command[0]}"


class SignalReaction(_Reaction):
    """A signal to a process that says its number in a file.

    Attributes:
        signal: The signal, such as HUP.
        pid_file: The file.
        executable: The program that the process must be, by its path or its name alone;
            otherwise a number that was given to another process since is taken for it.
    """

    signal: Literal["HUP", "USR1", "USR2", "WINCH", "INT", "QUIT", "TERM"]
    pid_file: AbsolutePath
    executable: Annotated[str, Field(min_length=1)] | None = None

    def __str__(self) -> str:
        return f"the signal {self.signal} by {self.pid_file}"


class HttpReaction(_Reaction):
    """An HTTP call.

    Attributes:
        http: The URL.
        method: The method.
        headers: Header fields that are no secret.
        header_files: Header fields whose values are in files, read at each attempt.
        body: What is sent.
        ca_file: The roots that the server's certificate must chain to; by default the system's.
        unix_socket: A socket to connect to, instead of the URL's host.
        expected_status: The status codes that mean success; by default 200 to 299.
    """

    http: str
    method: Annotated[str, Field(pattern=r"\A[A-Z]{3,10}\z")] = "POST"
    headers: dict[str, str] = Field(default_factory=dict)
    header_files: dict[str, AbsolutePath] = Field(default_factory=dict)
    body: str | None = None
    ca_file: AbsolutePath | None = None
    unix_socket: AbsolutePath | None = None
    expected_status: Annotated[
        tuple[Annotated[int, Field(ge=200, le=599)], ...] | None, Field(min_length=1)
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            url = urlsplit(self.http)
            host, _ = url.hostname, url.port
        except ValueError:
            raise ValueError("write a URL like http://127.0.0.1:9000/reload") from None
        if url.scheme not in ("http", "https") or not host:
            raise ValueError("write a URL like http://127.0.0.1:9000/reload or https://…")
        if url.username is not None or url.password is not None:
            raise ValueError("no password belongs into a URL: use 'header_files'")
        is_here = host in _LOOPBACK or self.unix_socket is not None
        if url.scheme == "http" and not is_here and self.header_files:
            raise ValueError("'header_files' would cross a network in the clear: use https")
        if url.scheme == "http" and self.ca_file is not None:
            raise ValueError("'ca_file' means nothing without https")
        for name in [*self.headers, *self.header_files]:
            if not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a header field")
        for name, value in self.headers.items():
            if name.lower() == "authorization":
                raise ValueError("a credential belongs into a file: use 'header_files'")
            if not value.isprintable() or not value.isascii():
                raise ValueError(f"the header field {name!r} has characters that none may have")
        return self

    def __str__(self) -> str:
        # A query may hold what is not for a log.
        url = urlsplit(self.http)
        return f"the call {self.method} {url.scheme}://{url.netloc}{url.path}"


_KINDS = {"command": CommandReaction, "signal": SignalReaction, "http": HttpReaction}


def _kind(value: Any) -> str | None:
    if isinstance(value, dict):
        named = [kind for kind in _KINDS if kind in value]
        return named[0] if len(named) == 1 else None
    return next((kind for kind, model in _KINDS.items() if isinstance(value, model)), None)


Reaction = CommandReaction | SignalReaction | HttpReaction

ReactionSettings = Annotated[
    Annotated[CommandReaction, Tag("command")]
    | Annotated[SignalReaction, Tag("signal")]
    | Annotated[HttpReaction, Tag("http")],
    Discriminator(
        _kind,
        custom_error_type="reaction",
        custom_error_message="a reaction is one of 'command: […]', 'signal: …' and 'http: …'",
    ),
]
"""One reaction."""
