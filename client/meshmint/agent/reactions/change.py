"""What has changed, as reactions are told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol, Self

from meshmint.agent.identities import Identity

__all__ = ["Change", "Written", "environment_of"]


class Written(Protocol):
    """An output that has been written."""

    @property
    def directory(self) -> Path:
        """Where."""

    @property
    def digest(self) -> str:
        """Says what, without telling it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One certificate whose outputs have changed.

    Attributes:
        name: Its name in the agent's configuration.
        serial_number: In hexadecimal.
        spiffe_id: The SPIFFE ID, if it has one.
        not_after: When it ends.
        directories: Where its outputs are.
        version: The same as long as its outputs hold the same.
    """

    name: str
    serial_number: str
    spiffe_id: str | None
    not_after: datetime | None
    directories: tuple[Path, ...]
    version: str

    @classmethod
    def of(cls, identity: Identity, outputs: Iterable[Written]) -> Self:
        """The change that has just been written to these outputs."""
        written = tuple(outputs)
        return cls(
            identity.name,
            f"{identity.certificate.serial_number:x}",
            identity.spiffe_id,
            identity.certificate.not_valid_after_utc,
            tuple(output.directory for output in written),
            _digest(written),
        )

    @classmethod
    def of_template(cls, name: str, output: Written) -> Self:
        """The change of a template that is not of one certificate."""
        return cls(name, "", None, None, (output.directory,), _digest((output,)))


def environment_of(changes: Sequence[Change]) -> dict[str, str]:
    """The variables that tell a command what has changed.

    Where several certificates have changed together each variable has a line for each of
    them, in the same order; MESHMINT_DIRECTORY has one for each directory.
    """
    directories = dict.fromkeys(str(one) for change in changes for one in change.directories)
    return {
        "MESHMINT_NAME": "\n".join(change.name for change in changes),
        "MESHMINT_SERIAL": "\n".join(change.serial_number for change in changes),
        "MESHMINT_SPIFFE_ID": "\n".join(change.spiffe_id or "" for change in changes),
        "MESHMINT_NOT_AFTER": "\n".join(
            "" if change.not_after is None else f"{change.not_after:%Y-%m-%dT%H:%M:%SZ}"
            for change in changes
        ),
        "MESHMINT_DIRECTORY": "\n".join(directories),
    }


def _digest(outputs: Sequence[Written]) -> str:
    joined = "".join(f"{output.directory}\0{output.digest}\0" for output in outputs)
    return hashlib.sha256(joined.encode()).hexdigest()
