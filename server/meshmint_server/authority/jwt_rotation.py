"""When a key that signs JWT-SVIDs is succeeded, and when it goes: the decision alone.

A key is published for long enough that everybody knows it before it signs, and stays
published until no token that it signed can live (SPIFFE Federation, section 3.3). Pure:
no I/O, and the time comes as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from meshmint_server.store import JwtKeyRow, JwtKeyState

__all__ = [
    "JwtKeyRules",
    "JwtKeyStep",
    "JwtKeys",
    "decide_keys",
    "known_from",
    "needed_until",
]

# The first key of all is known to nobody, and no token is refused for it. It waits until every
# worker hands it out: each looks every quarter of a second.
_FIRST_KNOWN: Final = timedelta(seconds=2)
# For a worker that has not heard yet that a key retired (`JwtKeyBook` bounds that), and for
# clocks that are some minutes apart.
_GRACE: Final = timedelta(minutes=10)


class JwtKeyStep(StrEnum):
    """What comes next.

    ``prepare``: make a key, and publish it. ``activate``: the next one is to sign.
    ``retire``: the active one is not to sign any more, and none is to follow. ``remove``:
    no token of a retired one can live. ``none``: nothing before the due time.
    """

    NONE = "none"
    PREPARE = "prepare"
    ACTIVATE = "activate"
    RETIRE = "retire"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class JwtKeyRules:
    """The thresholds.

    Attributes:
        is_enabled: Whether JWT-SVIDs are issued at all.
        period: How long a key signs. At least twice `publish_for`.
        publish_for: How long a key is published before it signs.
        longest_token: The longest lifetime of a token, ever.
    """

    is_enabled: bool = False
    period: timedelta = timedelta(days=30)
    publish_for: timedelta = timedelta(minutes=25)
    longest_token: timedelta = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class JwtKeys:
    """How far the rotation of the keys is.

    Attributes:
        step: What comes next.
        due: When, or since when; None if nothing ever comes.
        key: The key that it is about; None where one is to be made.
        is_urgent: Whether no key signs, though one should.
    """

    step: JwtKeyStep
    due: datetime | None
    key: JwtKeyRow | None
    is_urgent: bool


def known_from(row: JwtKeyRow, rows: Sequence[JwtKeyRow], rules: JwtKeyRules) -> datetime:
    """From when on a key, which is published, may sign."""
    published = row.published_at or row.created_at
    is_first = not any(one.state is JwtKeyState.ACTIVE for one in rows)
    return published + (min(_FIRST_KNOWN, rules.publish_for) if is_first else rules.publish_for)


def needed_until(row: JwtKeyRow, rules: JwtKeyRules) -> datetime | None:
    """Until when tokens of a key can live, which signs no more; None: it has not retired."""
    if row.state is not JwtKeyState.RETIRED or row.retired_at is None:
        return None
    return row.retired_at + rules.longest_token + _GRACE


def decide_keys(rows: Sequence[JwtKeyRow], now: datetime, rules: JwtKeyRules) -> JwtKeys:
    """What comes next, and when.

    Args:
        rows: Every key.
        now: The present.
        rules: The thresholds.
    """
    active = next((row for row in rows if row.state is JwtKeyState.ACTIVE), None)
    following = [row for row in rows if row.state is JwtKeyState.NEXT]
    step, due, key = _step(rows, active, following, rules, now)
    if step is not JwtKeyStep.NONE and due is not None and due <= now:
        return JwtKeys(step, due, key, rules.is_enabled and active is None)
    leaving = min(
        ((until, row) for row in rows if (until := needed_until(row, rules)) is not None),
        key=lambda one: one[0],
        default=None,
    )
    is_urgent = rules.is_enabled and active is None
    if leaving is not None and leaving[0] <= now:
        return JwtKeys(JwtKeyStep.REMOVE, leaving[0], leaving[1], is_urgent)
    dues = [one for one in (due, leaving and leaving[0]) if one is not None]
    return JwtKeys(JwtKeyStep.NONE, min(dues, default=None), None, is_urgent)


def _step(
    rows: Sequence[JwtKeyRow],
    active: JwtKeyRow | None,
    following: list[JwtKeyRow],
    rules: JwtKeyRules,
    now: datetime,
) -> tuple[JwtKeyStep, datetime | None, JwtKeyRow | None]:
    """The next step towards a key that signs, or towards none."""
    if not rules.is_enabled:
        # One that never signed needs not stay either.
        unused = following[0] if following else active
        return (JwtKeyStep.NONE, None, None) if unused is None else (JwtKeyStep.RETIRE, now, unused)
    half, end = now, now
    if active is not None and active.activated_at is not None:
        # The successor is made halfway, so that a token that is away for days delays nothing.
        half, end = active.activated_at + rules.period / 2, active.activated_at + rules.period
    if not following:
        waiting = next((row for row in rows if row.state is JwtKeyState.PENDING), None)
        return JwtKeyStep.PREPARE, half, waiting
    # The one that has been known for longest.
    key = min(following, key=lambda row: row.published_at or row.created_at)
    return JwtKeyStep.ACTIVATE, max(end, known_from(key, rows, rules)), key
