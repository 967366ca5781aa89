"""Users and groups by name or number, looked up when a file is written.

They may be made after the agent has started, so an unknown one is an error of the
output, and not of the configuration.
"""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

from meshmint.agent.outputs.errors import OutputError

__all__ = ["group_number", "user_number"]


def user_number(name: str | int | None, path: Path) -> int | None:
    """The number of a user.

    Args:
        name: A name or a number; None: the agent's own.
        path: What is to belong to it, for the error.

    Raises:
        OutputError: There is no such user.
    """
    if name is None or isinstance(name, int):
        return name
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise OutputError(
            path, f"there is no user {name!r} here: make it, or give its number"
        ) from None


def group_number(name: str | int | None, path: Path) -> int | None:
    """The number of a group; as `user_number`."""
    if name is None or isinstance(name, int):
        return name
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise OutputError(
            path, f"there is no group {name!r} here: make it, or give its number"
        ) from None
