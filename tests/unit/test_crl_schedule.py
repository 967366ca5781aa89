"""When a CRL is due, by the clock alone."""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from meshmint_server.authority import CrlTimes
from meshmint_server.authority.crl_schedule import due
from meshmint_server.config import CrlSettings
from meshmint_server.store import CrlKind, CrlRow
from pydantic import ValidationError
from support.crls import NOON

HOUR = timedelta(hours=1)
FULL_ONLY = CrlTimes(lifetime=24 * HOUR, interval=8 * HOUR, delay=HOUR / 60)
WITH_DELTAS = replace(FULL_ONLY, delta_lifetime=2 * HOUR)

FULL = CrlRow(
    issuer="mesh-1",
    shard=0,
    kind=CrlKind.FULL,
    number=4,
    base_number=None,
    this_update=NOON,
    next_update=NOON + 24 * HOUR,
    through=0,
    entries=0,
    document=b"",
)
DELTA = replace(FULL, kind=CrlKind.DELTA, number=5, base_number=4, next_update=NOON + 2 * HOUR)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (NOON, None),
        (NOON + 8 * HOUR - timedelta(seconds=1), None),
        (NOON + 8 * HOUR, CrlKind.FULL),
        (NOON + 365 * 24 * HOUR, CrlKind.FULL),  # the clock was set forward
        (NOON - timedelta(seconds=1), CrlKind.FULL),  # and back: nobody takes the old one
    ],
)
def test_full_crl_is_due_at_its_interval_and_when_the_clock_stepped(
    now: datetime, expected: CrlKind | None
) -> None:
    assert due(FULL, None, FULL_ONLY, now) is expected


@pytest.mark.parametrize(
    ("full", "delta", "now", "expected"),
    [
        (None, None, NOON, CrlKind.FULL),
        (FULL, None, NOON, CrlKind.DELTA),
        (FULL, DELTA, NOON, None),
        (FULL, DELTA, NOON + HOUR, CrlKind.DELTA),  # half of its lifetime is over
        (replace(FULL, number=6), DELTA, NOON, CrlKind.DELTA),  # builds on another
        (FULL, replace(DELTA, this_update=NOON + HOUR), NOON, CrlKind.DELTA),
        (FULL, DELTA, NOON + 8 * HOUR, CrlKind.FULL),
    ],
)
def test_delta_follows_its_base(
    full: CrlRow | None, delta: CrlRow | None, now: datetime, expected: CrlKind | None
) -> None:
    assert due(full, delta, WITH_DELTAS, now) is expected


def test_full_crl_that_names_a_delta_is_replaced_when_there_are_none_any_more() -> None:
    assert due(FULL, DELTA, FULL_ONLY, NOON) is CrlKind.FULL


def test_shorter_settings_hold_for_what_was_made_with_longer_ones() -> None:
    assert due(FULL, None, replace(FULL_ONLY, interval=HOUR), NOON + HOUR) is CrlKind.FULL
    longer = replace(FULL_ONLY, lifetime=240 * HOUR, interval=80 * HOUR)
    assert due(FULL, None, longer, NOON + 24 * HOUR) is CrlKind.FULL


@pytest.mark.parametrize(
    "settings",
    [
        {"lifetime": "24h", "interval": "13h"},
        {"interval": "1h", "delay": "2h"},
        {"delay": 0},
        {"delta_lifetime": "1m"},
        {"delta_lifetime": "25h"},
    ],
)
def test_times_that_do_not_fit_together_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        CrlSettings.model_validate(settings)
