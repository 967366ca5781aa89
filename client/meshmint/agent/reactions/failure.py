"""Failures of reactions: raised by one attempt, and told as values."""

from __future__ import annotations

from dataclasses import dataclass

from meshmint.agent.reactions.settings import Reaction

__all__ = ["AttemptFailed", "ReactionFailure", "printable"]

_MOST_CHARACTERS = 500


class AttemptFailed(Exception):
    """One attempt has failed; the text says what happened and what to do.

    Args:
        text: For everybody.
        said: What the program or the server has said of it, which may be anything.
    """

    def __init__(self, text: str, said: str = "") -> None:
        super().__init__(text + said)
        self.said = said


@dataclass(frozen=True, slots=True)
class ReactionFailure:
    """A reaction that has not succeeded yet.

    Attributes:
        reaction: Which.
        names: The certificates that it was for.
        attempts: How often it was tried.
        text: What happened the last time and what to do, in one line; it ends with `said`.
        said: What the program or the server has said of it: for the log alone, since other
            users of the machine may ask for the status.
    """

    reaction: Reaction
    names: tuple[str, ...]
    attempts: int
    text: str
    said: str = ""

    @property
    def for_everybody(self) -> str:
        """What happened, without what was said."""
        return self._told(self.text.removesuffix(self.said))

    def _told(self, text: str) -> str:
        return f"{self.reaction} failed after a change of {', '.join(self.names)}: {text}"

    def __str__(self) -> str:
        return self._told(self.text)


def printable(data: bytes) -> str:
    """What a program or a server has said, as one line that a log can hold; its end, if long."""
    text = " ".join(data.decode("utf-8", "replace").split())
    text = "".join(one if one.isprintable() else "\ufffd" for one in text)
    return text if len(text) <= _MOST_CHARACTERS else "…" + text[-_MOST_CHARACTERS:]
