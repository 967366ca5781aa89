"""When a key for JWT-SVIDs signs, and when it goes: never too early, and never for nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.authority import JwtKeyRules, JwtKeyStep, decide_keys
from meshmint_server.store import JwtKeyRow, JwtKeyState

NOW = datetime(2031, 5, 4, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RULES = JwtKeyRules(is_enabled=True, period=30 * DAY, publish_for=HOUR, longest_token=DAY)
GRACE = timedelta(minutes=10)


def key(name: str, state: JwtKeyState, **times: datetime) -> JwtKeyRow:
    return JwtKeyRow(name, state, f"pkcs11:object={name}", b"spki", NOW - 100 * DAY, **times)


def active(since: datetime) -> JwtKeyRow:
    return key("one", JwtKeyState.ACTIVE, published_at=since - DAY, activated_at=since)


def test_the_first_key_is_made_at_once_and_signs_as_soon_as_every_worker_hands_it_out() -> None:
    nothing = decide_keys((), NOW, RULES)
    assert (nothing.step, nothing.key, nothing.is_urgent) == (JwtKeyStep.PREPARE, None, True)
    first = key("one", JwtKeyState.NEXT, published_at=NOW)
    assert decide_keys((first,), NOW + timedelta(seconds=1), RULES).step is JwtKeyStep.NONE
    found = decide_keys((first,), NOW + timedelta(seconds=2), RULES)
    assert (found.step, found.key) == (JwtKeyStep.ACTIVATE, first)


def test_a_key_that_was_begun_is_finished_and_no_other_is_made() -> None:
    begun = key("one", JwtKeyState.PENDING)
    found = decide_keys((begun,), NOW, RULES)
    assert (found.step, found.key) == (JwtKeyStep.PREPARE, begun)


def test_a_successor_is_made_halfway_and_signs_at_the_end_of_the_period() -> None:
    one = active(NOW)
    before = decide_keys((one,), NOW + 15 * DAY - HOUR, RULES)
    assert (before.step, before.due) == (JwtKeyStep.NONE, NOW + 15 * DAY)
    assert decide_keys((one,), NOW + 15 * DAY, RULES).step is JwtKeyStep.PREPARE
    two = key("two", JwtKeyState.NEXT, published_at=NOW + 15 * DAY)
    waiting = decide_keys((one, two), NOW + 30 * DAY - HOUR, RULES)
    assert (waiting.step, waiting.due) == (JwtKeyStep.NONE, NOW + 30 * DAY)
    found = decide_keys((one, two), NOW + 30 * DAY, RULES)
    assert (found.step, found.key, found.is_urgent) == (JwtKeyStep.ACTIVATE, two, False)


def test_a_successor_that_comes_late_is_published_for_long_enough_all_the_same() -> None:
    one = active(NOW - 90 * DAY)
    two = key("two", JwtKeyState.NEXT, published_at=NOW)
    assert decide_keys((one, two), NOW + HOUR - timedelta(seconds=1), RULES).step is JwtKeyStep.NONE
    assert decide_keys((one, two), NOW + HOUR, RULES).step is JwtKeyStep.ACTIVATE


def test_a_retired_key_stays_until_its_last_token_has_expired_and_some_minutes() -> None:
    one = key("one", JwtKeyState.RETIRED, activated_at=NOW - DAY, retired_at=NOW)
    two = replace(active(NOW), key_id="two")
    last = NOW + DAY + GRACE
    found = decide_keys((one, two), last - timedelta(seconds=1), RULES)
    assert (found.step, found.due) == (JwtKeyStep.NONE, last)
    found = decide_keys((one, two), last, RULES)
    assert (found.step, found.key) == (JwtKeyStep.REMOVE, one)
    gone = replace(one, state=JwtKeyState.GONE)
    assert decide_keys((gone, two), last, RULES).step is JwtKeyStep.NONE


def test_where_they_are_turned_off_no_key_signs_and_all_go_in_the_end() -> None:
    off = replace(RULES, is_enabled=False)
    assert decide_keys((), NOW, off).step is JwtKeyStep.NONE
    assert not decide_keys((), NOW, off).is_urgent
    one, two = active(NOW), key("two", JwtKeyState.NEXT, published_at=NOW)
    assert decide_keys((one, two), NOW, off).step is JwtKeyStep.RETIRE
    retired = replace(one, state=JwtKeyState.RETIRED, retired_at=NOW)
    assert decide_keys((retired,), NOW + 2 * DAY, off).step is JwtKeyStep.REMOVE


MOMENTS = st.integers(0, 120 * 24 * 60).map(lambda minutes: NOW + timedelta(minutes=minutes))
ROWS = st.lists(
    st.builds(
        JwtKeyRow,
        st.sampled_from("abcd"),
        st.sampled_from(JwtKeyState),
        st.just("pkcs11:"),
        st.just(b"spki"),
        MOMENTS,
        MOMENTS,
        MOMENTS,
        MOMENTS,
    ),
    max_size=4,
    unique_by=lambda row: row.key_id,
)


@given(rows=ROWS, now=MOMENTS, is_enabled=st.booleans())
def test_no_key_takes_over_unknown_and_none_goes_while_a_token_of_it_can_live(
    rows: list[JwtKeyRow], now: datetime, is_enabled: bool
) -> None:
    found = decide_keys(rows, now, replace(RULES, is_enabled=is_enabled))
    has_active = any(row.state is JwtKeyState.ACTIVE for row in rows)
    if found.step is JwtKeyStep.ACTIVATE:
        assert found.key is not None
        assert found.key.published_at is not None
        assert found.key.state is JwtKeyState.NEXT
        assert now >= found.key.published_at + (HOUR if has_active else timedelta(seconds=2))
    if found.step is JwtKeyStep.REMOVE:
        assert found.key is not None
        assert found.key.retired_at is not None
        assert found.key.state is JwtKeyState.RETIRED
        assert now >= found.key.retired_at + DAY
    if found.step is JwtKeyStep.RETIRE:
        assert not is_enabled
