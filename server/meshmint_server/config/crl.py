"""CRLs: how long they live and how soon they are replaced."""

from __future__ import annotations

from datetime import timedelta

from pydantic import model_validator

from meshmint_server.config.fields import PositiveDuration, Section

__all__ = ["CrlSettings"]


class CrlSettings(Section):
    """CRLs: how long they live and how soon they are replaced.

    Attributes:
        lifetime: From thisUpdate to nextUpdate of a full CRL.
        interval: A new full CRL is made this often at least; at most half of ``lifetime``,
            so that there is time to mend what hinders it.
        delay: How soon a revocation shows up, and how long caches keep a CRL: in the
            delta if there are deltas, otherwise in the full CRL.
        delta_lifetime: From thisUpdate to nextUpdate of a delta CRL; without it there
            are none.
    """

    lifetime: PositiveDuration = timedelta(hours=24)
    interval: PositiveDuration = timedelta(hours=8)
    delay: PositiveDuration = timedelta(minutes=1)
    delta_lifetime: PositiveDuration | None = None

    @model_validator(mode="after")
    def _check_order(self) -> CrlSettings:
        if self.interval * 2 > self.lifetime:
            raise ValueError("'interval' is at most half of 'lifetime'")
        if self.delay > self.interval:
            raise ValueError("'delay' is longer than 'interval'")
        if self.delta_lifetime is not None:
            if self.delta_lifetime < self.delay * 2:
                raise ValueError("'delta_lifetime' is at least twice the 'delay'")
            if self.delta_lifetime > self.lifetime:
                raise ValueError("'delta_lifetime' is longer than 'lifetime'")
        return self
