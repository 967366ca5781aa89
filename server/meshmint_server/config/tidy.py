"""How long expired records are kept."""

from __future__ import annotations

from datetime import timedelta

from meshmint_server.config.fields import PositiveDuration, Section

__all__ = ["TidySettings"]


class TidySettings(Section):
    """The deletion of records and revocations of certificates that expired long ago.

    Attributes:
        enabled: Whether anything is deleted.
        keep: How long a record is kept after its certificate has expired.
        interval: How often what is due is deleted.
    """

    enabled: bool = True
    keep: PositiveDuration = timedelta(days=30)
    interval: PositiveDuration = timedelta(hours=1)
