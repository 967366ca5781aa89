"""Where the bearer token of a call comes from.

A token is asked for anew at every attempt, because mounted service-account
tokens are replaced while a process runs. No token is ever logged, kept on disk
or shown in a repr.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from meshmint.errors import ConfigurationError, TokenUnavailable

__all__ = ["TokenFile", "TokenSource"]

TokenSource = str | os.PathLike[str] | Callable[[], str] | Callable[[], Awaitable[str]]
"""A token itself, the path of a file that holds one, or a function that gives one.

A function may be asynchronous; only the asynchronous clients can use that.
"""

# RFC 6750 section 2.1: b64token. A JWT (RFC 7519) is a subset of it.
_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*")
_MAX_FILE_BYTES = 1 << 20
# What a service takes; of much larger ones it cannot even say what is wrong.
_MAX_TOKEN_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class TokenFile:
    """A file that holds a token and nothing else; read again at every call.

    Attributes:
        path: Path of the file, such as a projected service-account token.
    """

    path: Path

    def __call__(self) -> str:
        """Reads the token; white space around it does not count.

        Raises:
            TokenUnavailable: The file is missing, unreadable or empty.
        """
        try:
            with self.path.open("rb") as file:
                text = file.read(_MAX_FILE_BYTES).decode("ascii", errors="replace").strip()
        except OSError as error:
            raise TokenUnavailable(
                f"cannot read the token file {self.path}: {error.strerror or error}"
            ) from error
        if not text:
            raise TokenUnavailable(f"the token file {self.path} is empty")
        return _checked(text, f"the token file {self.path}")


@dataclass(frozen=True, slots=True)
class Tokens:
    """A token source, made ready to be asked by both kinds of client."""

    _ask: Callable[[], str | Awaitable[str]] | None = field(repr=False)

    @classmethod
    def of(cls, source: TokenSource | None) -> Tokens:
        """Accepts what users give.

        Raises:
            ConfigurationError: A string that is a path rather than a token.
            TokenUnavailable: A string that cannot be a token.
        """
        if source is None:
            return cls(None)
        if isinstance(source, str):
            if source.startswith(("/", "./", "~")):
                raise ConfigurationError(
                    "the token looks like a path: pass TokenFile(path) or a pathlib.Path"
                )
            token = _checked(source.strip(), "the token given")
            return cls(lambda: token)
        if isinstance(source, os.PathLike):
            return cls(TokenFile(Path(source)))
        return cls(source)

    def __bool__(self) -> bool:
        return self._ask is not None

    def get(self) -> str | None:
        """Asks for the token; None if the client has no source.

        Raises:
            TokenUnavailable: The source gives none.
            ConfigurationError: The source is asynchronous.
        """
        if self._ask is None:
            return None
        token = self._ask()
        if not isinstance(token, str):
            if inspect.iscoroutine(token):
                token.close()
            raise ConfigurationError(
                "the token source is asynchronous: use AsyncClient, or give one that is not"
            )
        return _checked(token.strip(), "the token source")

    async def get_async(self) -> str | None:
        """Asks for the token, off the event loop if the source may block.

        Raises:
            TokenUnavailable: The source gives none.
        """
        if self._ask is None:
            return None
        if inspect.iscoroutinefunction(self._ask):
            token = await self._ask()
        else:
            token = await asyncio.to_thread(self._ask)
            if inspect.isawaitable(token):
                token = await token
        return _checked(token.strip(), "the token source")


def _checked(token: str, origin: str) -> str:
    if not token:
        raise TokenUnavailable(f"{origin} is empty")
    if not _TOKEN.fullmatch(token):
        raise TokenUnavailable(
            f"{origin} holds something else than one bearer token: "
            "it may only have letters, digits and '-._~+/='"
        )
    if len(token) > _MAX_TOKEN_BYTES:
        raise TokenUnavailable(
            f"{origin} holds {len(token)} bytes, and no service takes over {_MAX_TOKEN_BYTES}"
        )
    return token
