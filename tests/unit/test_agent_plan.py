"""When the agent renews, how long it waits after a failure, and how loud it gets."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint.agent.config import RenewalSettings, WindowSettings
from meshmint.agent.plan import Loudness, Validity, loudness, pause, renewal_time

START = datetime(2030, 5, 1, 12, tzinfo=UTC)
HOUR = Validity(START, START + timedelta(hours=1))
DAY = Validity(START, START + timedelta(days=1))


def settings(**fields: Any) -> RenewalSettings:
    return RenewalSettings(**fields)


def window(start: str, end: str) -> WindowSettings:
    return WindowSettings(start=time.fromisoformat(start), end=time.fromisoformat(end))


def test_renewal_is_at_two_thirds_of_the_lifetime_unless_told_otherwise() -> None:
    assert renewal_time(HOUR, settings(), 0.5) == START + timedelta(hours=0.67)
    assert renewal_time(HOUR, settings(fraction=0.5), 0.5) == START + timedelta(minutes=30)


def test_jitter_moves_the_renewal_to_either_side_by_its_share_of_the_lifetime() -> None:
    wanted = settings(fraction=0.5, jitter=0.1)
    assert renewal_time(HOUR, wanted, 0.0) == START + timedelta(minutes=24)
    assert renewal_time(HOUR, wanted, 1.0) == START + timedelta(minutes=36)


def test_no_renewal_before_the_earliest_moment_but_never_past_nine_tenths() -> None:
    freeze = START + timedelta(hours=20)
    assert renewal_time(DAY, settings(not_before=freeze), 0.5) == freeze
    late = settings(not_before=START + timedelta(days=3))
    assert renewal_time(DAY, late, 0.5) == START + timedelta(days=1) * 0.9


def test_a_window_moves_the_renewal_into_it_spread_over_it() -> None:
    # Due at 04:04; the window opens at 06:00 for two hours.
    for chance, expected in ((0.0, 6), (0.5, 7)):
        moment = renewal_time(DAY, settings(jitter=0, window=window("06:00", "08:00")), chance)
        assert moment == datetime(2030, 5, 2, expected, tzinfo=UTC)


def test_what_is_due_inside_the_window_stays_where_it_is() -> None:
    wanted = settings(jitter=0, window=window("22:00", "05:00"))
    assert renewal_time(DAY, wanted, 0.9) == START + timedelta(days=1) * 0.67


def test_a_window_that_comes_too_late_is_not_waited_for() -> None:
    wanted = settings(jitter=0, window=window("11:30", "11:40"))
    assert renewal_time(DAY, wanted, 0.5) == START + timedelta(days=1) * 0.9


@given(
    seconds=st.integers(2, 400 * 86400),
    fraction=st.floats(0.2, 0.7),
    jitter=st.floats(0, 0.19),
    chance=st.floats(0, 1),
    freeze=st.none() | st.timedeltas(timedelta(), timedelta(days=500)),
    hours=st.none() | st.tuples(st.integers(0, 23), st.integers(0, 23)),
)
def test_no_setting_plans_a_renewal_outside_the_certificates_life(
    *,
    seconds: int,
    fraction: float,
    jitter: float,
    chance: float,
    freeze: timedelta | None,
    hours: tuple[int, int] | None,
) -> None:
    validity = Validity(START, START + timedelta(seconds=seconds))
    wanted = settings(
        fraction=fraction,
        jitter=jitter,
        not_before=None if freeze is None else START + freeze,
        window=None
        if hours is None or hours[0] == hours[1]
        else WindowSettings(start=time(hours[0]), end=time(hours[1])),
    )
    assert START < renewal_time(validity, wanted, chance) < validity.end


def test_a_lifetime_counts_from_when_the_certificate_came_and_not_from_its_back_date() -> None:
    got = START + timedelta(seconds=30)
    counted = Validity.of(START, START + timedelta(seconds=40), got, got)
    assert counted.length == timedelta(seconds=10)


@pytest.mark.parametrize("wrong", [timedelta(hours=-2), timedelta(hours=2), timedelta(minutes=70)])
def test_a_moment_of_receipt_that_cannot_be_right_is_not_counted_from(wrong: timedelta) -> None:
    # The clock was set back after the certificate came, or stood wrong when it did.
    now = START + timedelta(minutes=10)
    assert Validity.of(START, HOUR.end, START + wrong, now) == HOUR


def draw_most(low: float, high: float) -> float:
    return high


def draw_least(low: float, high: float) -> float:
    return low


def test_pauses_double_up_to_a_twentieth_of_the_life_with_full_jitter() -> None:
    longest = [pause(n, HOUR, START, draw_most).total_seconds() for n in range(1, 12)]
    assert longest == [1, 2, 4, 8, 16, 32, 64, 128, 180, 180, 180]
    assert not pause(5, HOUR, START, draw_least)


def test_short_lives_are_tried_every_second_and_long_ones_every_five_minutes() -> None:
    brief = Validity(START, START + timedelta(seconds=10))
    assert pause(9, brief, START, draw_most) == timedelta(seconds=1)
    assert pause(40, DAY, START, draw_most) == timedelta(minutes=5)


def test_the_less_life_is_left_the_more_often_is_tried_down_to_half_a_minute() -> None:
    for minutes_left, longest in ((40, 180), (30, 180), (20, 120), (10, 60), (5, 30), (1, 30)):
        now = HOUR.end - timedelta(minutes=minutes_left)
        assert pause(40, HOUR, now, draw_most) == timedelta(seconds=longest)


def test_what_the_service_asks_to_wait_is_waited_on_top_up_to_a_minute() -> None:
    for asked_for, waited in ((None, 4), (0.5, 4.5), (3600.0, 64)):
        found = pause(3, HOUR, START, draw_most, asked_for=asked_for)
        assert found == timedelta(seconds=waited)
    assert pause(3, None, START, draw_least, asked_for=5.0) == timedelta(seconds=5)


def test_without_a_good_certificate_nobody_waits_longer_than_half_a_minute() -> None:
    assert pause(40, None, START, draw_most) == timedelta(seconds=30)
    assert pause(40, DAY, DAY.end, draw_most) == timedelta(seconds=30)
    assert pause(10**9, None, START, draw_most) == timedelta(seconds=30)


def test_warnings_grow_louder_as_life_runs_out() -> None:
    shares = {0.33: Loudness.NOTICE, 0.2: Loudness.WARNING, 0.05: Loudness.URGENT}
    for left, expected in shares.items():
        assert loudness(HOUR, HOUR.end - timedelta(hours=left)) is expected
    assert loudness(HOUR, HOUR.end) is Loudness.EXPIRED
    assert loudness(None, START) is Loudness.URGENT
