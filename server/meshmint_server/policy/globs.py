"""Plain globs over text: "*" stands for any characters, everything else for itself.

No regular expressions, so no pattern can make matching slow, and the whole
text is always compared, so no trailing newline slips through.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Glob"]


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern; case-sensitive. Without a "*" it matches only itself."""

    pattern: str
    _pieces: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_pieces", tuple(self.pattern.split("*")))

    def matches(self, text: str) -> bool:
        """Tells whether the whole text fits."""
        first, *rest = self._pieces
        if not rest:
            return text == first
        last = rest.pop()
        if len(text) < len(first) + len(last):
            return False
        if not (text.startswith(first) and text.endswith(last)):
            return False
        # Leftmost fit of each piece in order: linear, and right because every
        # gap takes any characters.
        position, end = len(first), len(text) - len(last)
        for piece in rest:
            found = text.find(piece, position, end)
            if found < 0:
                return False
            position = found + len(piece)
        return True
