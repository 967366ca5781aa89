"""How many requests are worked on and wait, and how often anybody may ask."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from meshmint_server.config.fields import Section
from meshmint_server.issuance import Admission, Rate, Rates
from meshmint_server.policy import CallerMatcher, Glob

__all__ = ["AdmissionSettings", "RateSettings"]


class RateSettings(Section):
    """How often some callers may have something issued, under some roles.

    Attributes:
        callers: Which callers, as in a role; empty: all.
        roles: Names of the roles, with ``*`` as a glob; empty: all.
        per: Who has the rate: each ``caller``, each ``role``, or ``all`` together.
        rate: Requests per second of one replica, over all its workers.
        burst: How many may come at once after a pause; as many as in a second if it is not
            set.
    """

    callers: tuple[CallerMatcher, ...] = ()
    roles: tuple[str, ...] = ()
    per: Literal["caller", "role", "all"] = "caller"
    rate: Annotated[float, Field(gt=0, le=1_000_000)]
    burst: Annotated[float | None, Field(ge=1, le=1_000_000)] = None

    @model_validator(mode="after")
    def _names_no_empty_role(self) -> RateSettings:
        if not all(self.roles):
            raise ValueError("an empty name of a role means nothing: leave it out, or write '*'")
        return self

    def build(self, workers: int) -> Rate:
        """One worker's share."""
        burst = self.rate if self.burst is None else self.burst
        return Rate(
            callers=self.callers,
            roles=tuple(map(Glob, self.roles)),
            per=self.per,
            rate=self.rate / workers,
            burst=max(1.0, burst / workers),
        )


class AdmissionSettings(Section):
    """What happens when more is asked for than can be done.

    Attributes:
        working: The most requests for certificates that one worker works on at a time.
        waiting: The most that wait for their turn there, callers taking turns; beyond it
            the newest of the caller with most of them gets RESOURCE_EXHAUSTED.
        rates: Limits for callers and roles.
    """

    working: Annotated[int, Field(ge=1, le=100_000)] = 256
    waiting: Annotated[int, Field(ge=0, le=1_000_000)] = 2048
    rates: tuple[RateSettings, ...] = ()

    def build(self, workers: int) -> Admission:
        """The door of one worker of so many."""
        rates = Rates([one.build(workers) for one in self.rates]) if self.rates else None
        return Admission(working=self.working, waiting=self.waiting, rates=rates)
