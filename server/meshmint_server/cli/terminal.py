"""What people see: colours on a terminal, plain text elsewhere, and one way to fail."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.theme import Theme

from meshmint_server.errors import MeshmintError

__all__ = ["Failure", "errors", "out", "readable_subject", "show_failure"]

_THEME = Theme({"good": "green", "bad": "bold red", "careful": "yellow", "dim": "dim"})

# Lines are pasted from here: no wrapping, no marking up of numbers and paths.
out = Console(theme=_THEME, soft_wrap=True, highlight=False)
errors = Console(theme=_THEME, soft_wrap=True, highlight=False, stderr=True)


class Failure(Exception):
    """A command cannot do what was asked; the message says what to do.

    Attributes:
        message: What is wrong, and what to do.
        problems: One line each, if there are several.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)

    @classmethod
    def of(cls, error: MeshmintError) -> Failure:
        """What the service refused, as a command's failure."""
        return cls(
            error.message,
            [
                f"{violation.field}: {violation.description}"
                for violation in error.violations
                if violation.description not in error.message
            ],
        )


def readable_subject(rfc4514: str) -> str:
    """A subject with the one attribute named that RFC 4514 section 3 leaves as numbers."""
    return rfc4514.replace("2.5.4.5=", "serialNumber=")


def show_failure(failure: Failure) -> None:
    """Prints it to standard error."""
    errors.print("[bad]Error:[/] ", end="")
    errors.print(failure.message, markup=False)
    for problem in failure.problems:
        errors.print(f"  {problem}", markup=False)
