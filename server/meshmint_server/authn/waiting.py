"""How many calls may wait for what vouches for tokens.

Each call that waits costs memory, and anybody can make one wait: so there is a
limit, and who comes past it is told at once to come back, not queued.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from meshmint_server.errors import VerifierUnavailable

__all__ = ["WaitingRoom", "busy"]


def busy(purpose: str) -> VerifierUnavailable:
    """The error for who finds no place.

    Args:
        purpose: What cannot take more, in words for messages.
    """
    return VerifierUnavailable(
        f"too many tokens wait for {purpose}; this one was neither accepted nor refused, try again",
        reason="VERIFIER_BUSY",
    )


class WaitingRoom:
    """Places for the calls that wait for one thing.

    Args:
        places: How many.
        purpose: What they wait for, in words for messages.
    """

    def __init__(self, places: int, purpose: str) -> None:
        self._places = places
        self._purpose = purpose
        self._taken = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Takes a place for as long as the block runs.

        Raises:
            VerifierUnavailable: There is none.
        """
        if self._taken >= self._places:
            raise busy(self._purpose)
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
