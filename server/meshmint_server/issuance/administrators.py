"""Who is an administrator: one check for all that only they may do."""

from __future__ import annotations

from collections.abc import Sequence

from meshmint_server.audit import AuditLog, Origin
from meshmint_server.errors import MeshmintError, PermissionDenied
from meshmint_server.policy import Caller, CallerMatcher

__all__ = ["AdminGate", "Administrators"]


class Administrators:
    """The callers that the configuration names under ``admins``."""

    def __init__(self, matchers: Sequence[CallerMatcher]) -> None:
        self._matchers = tuple(matchers)

    def include(self, caller: Caller) -> bool:
        """Whether this caller is one of them."""
        return any(matcher.matches(caller) for matcher in self._matchers)


class AdminGate:
    """Lets administrators through, and writes down whom it turned away and what was changed."""

    def __init__(self, admins: Administrators, audit: AuditLog) -> None:
        self._admins = admins
        self._audit = audit

    def require_admin(self, caller: Caller, origin: Origin) -> None:
        """Returns for an administrator.

        Raises:
            PermissionDenied: It is none.
        """
        if self._admins.include(caller):
            return
        error = PermissionDenied(
            "This caller is not an administrator. The server's configuration lists them "
            "under 'admins'.",
            reason="NOT_AN_ADMIN",
        )
        self.refused(caller, origin, error)
        raise error

    def refused(self, caller: Caller, origin: Origin, error: MeshmintError) -> None:
        """Writes a refusal down."""
        self._audit.refused(
            origin, error, caller=caller.subject, authenticator=caller.authenticator
        )

    def changed(self, caller: Caller, origin: Origin, change: str) -> None:
        """Writes a change down, in words."""
        self._audit.administered(
            origin, caller=caller.subject, authenticator=caller.authenticator, change=change
        )
