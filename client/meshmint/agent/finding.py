"""One thing that `--check` looked at."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        place: Where in the configuration.
        text: What was found, or would be done; or what is wrong and what to do.
        is_fault: Whether the agent could not work like this.
    """

    place: str
    text: str
    is_fault: bool = False
