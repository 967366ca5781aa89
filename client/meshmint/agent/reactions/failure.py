"""Failures of reactions: raised by one attempt, and told as values."""

from __future__ import annotations

from dataclasses import dataclass

from meshmint.agent.reactions.settings import Reaction

__all__ = ["AttemptFailed", "ReactionFailure", "printable"]

_MOST_CHARACTERS = 500


class AttemptFailed(Exception):
    """One attempt has failed; the text says what happened and what to do."""


@dataclass(frozen=True, slots=True)
class ReactionFailure:
    """A reaction that has not succeeded yet.

    Attributes:
        reaction: Which.
        names: The certificates that it was for.
        attempts: How often it was tried.
        text: What happened the last time and what to do, in one line.
    """

    reaction: Reaction
    names: tuple[str, ...]
    attempts: int
    text: str

    def __str__(self) -> str:
        return f"{self.reaction} failed after a change of {', '.join(self.names)}: {self.text}"


def printable(data: bytes) -> str:
    """What a program or a server has said, as one line that a log can hold; its end, if long."""
    text = " ".join(data.decode("utf-8", "replace").split())
    text = "".join(one if one.isprintable() else "\ufffd" for one in text)
    return text if len(text) <= _MOST_CHARACTERS else "…" + text[-_MOST_CHARACTERS:]
