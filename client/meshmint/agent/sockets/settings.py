"""The settings of one unix socket, as they stand in the agent's configuration.

Checked as text: whether the directory and the users exist is seen when the socket
is made.
"""

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["Protocol", "SocketSettings"]

Protocol = Literal["workload-api", "sds"]
"""What is spoken on a socket."""

# A unix socket's address has 108 bytes (unix(7)), the last of them zero. The socket is made
# in a folder beside its path, whose name takes up to this much beside the directory's.
_ADDRESS_BYTES = 107
_PASSING_BYTES = len("/.12345678/s")

# Who connects needs to write; nobody executes a socket.
_MODE = re.compile(r"0?[0246][0246][0246]")


def _path(value: str) -> str:
    if value.startswith(("@", "\0")):
        raise ValueError(
            "abstract sockets have no permissions, so everybody could take the keys: "
            "write the path of a file"
        )
    if "\0" in value:
        raise ValueError("a path has no zero byte")
    if not value.startswith("/") or value.startswith("//") or os.path.normpath(value) != value:
        raise ValueError(
            "write the whole path, beginning with one '/' and without '.', '..', '//' or a "
            "'/' at its end, such as /run/meshmint/agent.sock"
        )
    if os.path.dirname(value) == "/":
        raise ValueError("give the socket a directory of its own, such as /run/meshmint/agent.sock")
    directory = os.fsencode(os.path.dirname(value))
    if max(len(os.fsencode(value)), len(directory) + _PASSING_BYTES) > _ADDRESS_BYTES:
        raise ValueError(
            f"the path is too long for a unix socket: its directory may have "
            f"{_ADDRESS_BYTES - _PASSING_BYTES} bytes, and all of it {_ADDRESS_BYTES}"
        )
    return value


def _mode(value: object) -> int:
    # YAML reads 0660 as 432 and 660 as six hundred and sixty: text says what is meant.
    if not isinstance(value, str) or not _MODE.fullmatch(value):
        raise ValueError(
            "write the mode in quotes, as octal digits without execution, such as '0660'"
        )
    mode = int(value, 8)
    if mode & 0o600 != 0o600:
        raise ValueError("the owner must be able to read and write: begin with 6, such as '0660'")
    return mode


def _owner(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError("write a name or a number")
    if isinstance(value, int) and not 0 <= value < 2**32 - 1:
        raise ValueError("a number of a user or group lies between 0 and 4294967294")
    return value


def _each_once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if names is not None and not names:
        raise ValueError("name at least one certificate, or leave the list out to serve all")
    if names is not None and len(set(names)) != len(names):
        raise ValueError("name each certificate once")
    return names


def _protocols(names: tuple[Protocol, ...]) -> tuple[Protocol, ...]:
    if not names or len(set(names)) != len(names):
        raise ValueError("name 'workload-api', 'sds' or both, each once")
    return names


Owner = Annotated[str | int, BeforeValidator(_owner)]


class SocketSettings(BaseModel):
    """One unix socket.

    Attributes:
        path: Where it is: a whole path in a directory that nobody else writes to.
        owner: The user that owns it: name or number. None: the agent's own.
        group: Its group: name or number. None: the agent's own.
        mode: Its permissions. Whoever may write to it gets the private keys.
        protocols: What is spoken on it.
        certificates: Names of the certificates served, the default one first. None: all
            of them, in the order of the configuration.
        shared_directory: Whether others may be able to write to the socket's directory,
            and so to put a socket of theirs in its place.
        max_streams: How many streams may be open on it at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    path: Annotated[str, AfterValidator(_path)]
    owner: Owner | None = None
    group: Owner | None = None
    mode: Annotated[int, BeforeValidator(_mode)] = 0o660
    protocols: Annotated[tuple[Protocol, ...], AfterValidator(_protocols)] = (
        "workload-api",
        "sds",
    )
    certificates: Annotated[tuple[str, ...] | None, AfterValidator(_each_once)] = None
    shared_directory: bool = False
    max_streams: Annotated[int, Field(ge=1, le=100_000)] = 4096
