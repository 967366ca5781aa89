"""Who is an administrator: one check for all that only they may do."""

from __future__ import annotations

from collections.abc import Sequence

from meshmint_server.policy import Caller, CallerMatcher

__all__ = ["Administrators"]


class Administrators:
    """The callers that the configuration names under ``admins``."""

    def __init__(self, matchers: Sequence[CallerMatcher]) -> None:
        self._matchers = tuple(matchers)

    def include(self, caller: Caller) -> bool:
        """Whether this caller is one of them."""
        return any(matcher.matches(caller) for matcher in self._matchers)
