"""Collects everything that is wrong with a request, so that a caller hears it all at once."""

from __future__ import annotations

from meshmint_server.errors import InvalidRequest, PolicyViolated, Violation

__all__ = ["Findings"]


class Findings:
    """What the checks of one decision found. Lives for one call of ``decide``."""

    __slots__ = ("_malformed", "_outside", "warnings")

    def __init__(self) -> None:
        self._malformed: list[Violation] = []
        self._outside: list[Violation] = []
        self.warnings: list[str] = []

    def malformed(self, field: str, description: str) -> None:
        """Notes that a field holds something that no role could grant."""
        self._malformed.append(Violation(field, description))

    def outside(self, field: str, description: str) -> None:
        """Notes that a field asks for something that this role does not grant."""
        self._outside.append(Violation(field, description))

    def warn(self, text: str) -> None:
        """Notes a change that the caller should hear of."""
        self.warnings.append(text)

    @property
    def count(self) -> int:
        """How much stands against the request so far."""
        return len(self._malformed) + len(self._outside)

    @property
    def is_clean(self) -> bool:
        """Whether nothing stands against the request so far."""
        return not self._malformed and not self._outside

    def raise_if_any(self, role: str) -> None:
        """Raises what was found; malformed input goes before policy.

        Raises:
            InvalidRequest: Something is malformed.
            PolicyViolated: Something lies outside the role.
        """
        if self._malformed:
            raise InvalidRequest(
                f"The request is malformed: {_summary(self._malformed)}",
                violations=self._malformed,
            )
        if self._outside:
            raise PolicyViolated(
                f"Role {role!r} does not grant this request: {_summary(self._outside)}",
                violations=self._outside,
            )


def _summary(violations: list[Violation]) -> str:
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return f"{first.field}: {first.description}{more}"
