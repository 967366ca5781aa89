"""Which JWT-SVIDs a role's callers may have: the role's part, checked when it is written."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer

from meshmint_server.errors import Violation
from meshmint_server.policy.durations import format_duration
from meshmint_server.policy.globs import Glob
from meshmint_server.policy.role_fields import CommaList, Duration, Lifetime

__all__ = [
    "LONGEST_AUDIENCE",
    "LONGEST_TTL",
    "JwtSvid",
    "JwtSvidRules",
    "check_rules",
    "is_visible_ascii",
]

LONGEST_TTL = timedelta(hours=24)
"""No token lives longer, whatever a role says: a key is published for that long after its last."""

LONGEST_AUDIENCE = 512
_MOST_PATTERNS = 100


class JwtSvidRules(BaseModel):
    """Lets a role's callers have JWT-SVIDs of their own SPIFFE ID.

    Attributes:
        audiences: Globs; an audience must match one of them as a whole.
        ttl: Lifetime where the caller asks for none; None: max_ttl.
        max_ttl: The longest lifetime.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    audiences: CommaList = ()
    ttl: Lifetime = None
    max_ttl: Duration = timedelta(minutes=5)

    @cached_property
    def audience_globs(self) -> tuple[Glob, ...]:
        """What audiences allows."""
        return tuple(Glob(pattern) for pattern in self.audiences)

    def allows(self, audience: str) -> bool:
        """Whether a token may be for this audience."""
        return any(glob.matches(audience) for glob in self.audience_globs)


def _write(rules: JwtSvidRules | None) -> dict[str, Any] | None:
    return None if rules is None else rules.model_dump(mode="json", exclude_none=True)


JwtSvid = Annotated[JwtSvidRules | None, PlainSerializer(_write)]
"""The type of a role's field."""


def is_visible_ascii(text: str) -> bool:
    """Whether all characters can be seen, told apart and typed; no blanks."""
    return text.isascii() and text.isprintable() and " " not in text


def check_rules(rules: JwtSvidRules) -> Iterable[Violation]:
    """Everything that is wrong with rules whose single fields are fine."""
    if not rules.audiences:
        yield Violation(
            "jwt_svid.audiences",
            "name at least one audience, such as https://api.example.org; leave jwt_svid out to "
            "grant no JWT-SVIDs",
        )
    if len(rules.audiences) > _MOST_PATTERNS:
        yield Violation("jwt_svid.audiences", f"at most {_MOST_PATTERNS} patterns")
    for index, pattern in enumerate(rules.audiences[:_MOST_PATTERNS]):
        if len(pattern) > LONGEST_AUDIENCE or not is_visible_ascii(pattern):
            yield Violation(
                f"jwt_svid.audiences[{index}]",
                f"a pattern has at most {LONGEST_AUDIENCE} visible ASCII characters",
            )
    if not timedelta(0) < rules.max_ttl <= LONGEST_TTL:
        yield Violation(
            "jwt_svid.max_ttl",
            f"longer than 0 and at most {format_duration(LONGEST_TTL)}: a token cannot be revoked",
        )
    if rules.ttl is not None and rules.ttl > rules.max_ttl:
        yield Violation("jwt_svid.ttl", '"ttl" must not be longer than "max_ttl"')
