"""Lifetimes: no way of asking gets a certificate past max_ttl."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest, MeshmintError, PolicyViolated
from meshmint_server.policy import Bounds, CertificateRequest, Validity, decide
from support.policy import (
    BOUNDS,
    NOW,
    TRUST_DOMAIN,
    decide_validity,
    make_caller,
    make_role,
    violations_of,
)

WHOLE = NOW.replace(microsecond=0)
HOUR = timedelta(hours=1)
BACKDATED = timedelta(seconds=30)


def test_lifetime_defaults_to_the_roles_then_the_services() -> None:
    assert decide_validity(make_role(spiffe="own")).not_after == WHOLE + timedelta(hours=24)
    role = make_role(spiffe="own", ttl="90m", not_before_duration="0s")
    decision = decide_validity(role)
    assert decision.not_after == WHOLE + timedelta(minutes=90)
    assert decision.not_before == WHOLE


def test_service_limits_go_before_the_roles() -> None:
    role = make_role(spiffe="own", ttl="800h", max_ttl="900h")
    decision = decide_validity(role)
    assert decision.not_after == WHOLE + BOUNDS.max_ttl
    assert decision.warnings == ()  # nothing that was asked for changed
    assert decide_validity(role, ttl=timedelta(hours=850)).not_after == WHOLE + BOUNDS.max_ttl


def test_default_longer_than_max_ttl_is_shortened_in_silence() -> None:
    decision = decide_validity(make_role(spiffe="own", max_ttl="1h"))
    assert decision.not_after == WHOLE + HOUR
    assert decision.warnings == ()


def test_ttl_over_max_is_clamped_with_a_warning_or_refused() -> None:
    decision = decide_validity(make_role(spiffe="own", max_ttl="1h"), ttl=5 * HOUR)
    assert decision.not_after == WHOLE + HOUR
    assert len(decision.warnings) == 1
    with pytest.raises(PolicyViolated) as caught:
        decide_validity(make_role(spiffe="own", max_ttl="1h", ttl_over_max="refuse"), ttl=5 * HOUR)
    assert set(violations_of(caught.value)) == {"validity.ttl"}


def test_ttl_within_max_is_granted_without_a_warning() -> None:
    decision = decide_validity(make_role(spiffe="own", max_ttl="2h"), ttl=2 * HOUR)
    assert decision.not_after == WHOLE + 2 * HOUR
    assert decision.warnings == ()


@pytest.mark.parametrize(
    "ttl",
    [timedelta(0), timedelta(seconds=-1), timedelta(milliseconds=999), timedelta(days=-9999),
     timedelta(days=3_652_059), timedelta.max, timedelta.min],
)  # fmt: skip
def test_ttl_that_is_no_lifetime_is_malformed(ttl: timedelta) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decide_validity(make_role(spiffe="own"), ttl=ttl)
    assert set(violations_of(caught.value)) == {"validity.ttl"}


def test_ttl_and_not_after_together_are_malformed() -> None:
    with pytest.raises(InvalidRequest):
        decide_validity(make_role(spiffe="own"), ttl=HOUR, not_after=NOW + HOUR)


def test_not_after_in_the_past_is_malformed() -> None:
    for end in (NOW, NOW - HOUR, datetime(1, 1, 1, tzinfo=UTC)):
        with pytest.raises(InvalidRequest):
            decide_validity(make_role(spiffe="own"), not_after=end)


@pytest.mark.parametrize("bound", ["permit", "ttl-limited", "2027-01-01T00:00:00Z"])
def test_not_after_cannot_pass_max_ttl(bound: str) -> None:
    role = make_role(spiffe="own", max_ttl="1h", not_after_bound=bound)
    assert decide_validity(role, not_after=WHOLE + HOUR).not_after == WHOLE + HOUR
    with pytest.raises(PolicyViolated) as caught:
        decide_validity(role, not_after=WHOLE + HOUR + timedelta(seconds=1))
    assert set(violations_of(caught.value)) == {"validity.not_after"}


def test_not_after_bound_forbid_and_ceiling() -> None:
    with pytest.raises(PolicyViolated):
        decide_validity(make_role(spiffe="own", not_after_bound="forbid"), not_after=NOW + HOUR)
    ceiling = WHOLE + 2 * HOUR
    role = make_role(spiffe="own", not_after_bound=ceiling.isoformat())
    assert decide_validity(role, not_after=ceiling).not_after == ceiling
    with pytest.raises(PolicyViolated):
        decide_validity(role, not_after=ceiling + timedelta(seconds=1))
    # Nor does a ttl get past it.
    assert decide_validity(role).not_after == ceiling
    clamped = decide_validity(role, ttl=3 * HOUR)
    assert clamped.not_after == ceiling
    assert clamped.warnings


def test_role_fixes_start_and_end() -> None:
    role = make_role(
        spiffe="own", not_before="2026-01-01T00:00:00Z", not_after="2026-06-02T00:00:00+02:00"
    )
    decision = decide_validity(role)
    assert decision.not_before == datetime(2026, 1, 1, tzinfo=UTC)
    assert decision.not_after == datetime(2026, 6, 1, 22, tzinfo=UTC)
    assert decide_validity(role, not_after=decision.not_after) == decision
    with pytest.raises(PolicyViolated) as caught:
        decide_validity(role, ttl=HOUR, not_before=NOW)
    assert set(violations_of(caught.value)) == {"validity.ttl", "validity.not_before"}


def test_fixed_end_is_held_to_the_maximum_and_must_not_have_passed() -> None:
    far = decide_validity(make_role(spiffe="own", not_after="2030-01-01T00:00:00Z"))
    assert far.not_after == WHOLE + BOUNDS.max_ttl
    assert far.warnings
    with pytest.raises(PolicyViolated):
        decide_validity(make_role(spiffe="own", not_after="2026-05-01T00:00:00Z"))


def test_start_by_not_before_bound() -> None:
    permit = make_role(spiffe="own", max_ttl="1h")
    assert decide_validity(permit, not_before=NOW).not_before == WHOLE
    duration = make_role(spiffe="own", not_before_bound="duration")
    assert decide_validity(duration, not_before=WHOLE - BACKDATED).not_before == WHOLE - BACKDATED
    with pytest.raises(PolicyViolated):
        decide_validity(duration, not_before=WHOLE - BACKDATED - timedelta(seconds=1))
    with pytest.raises(PolicyViolated):
        decide_validity(make_role(spiffe="own", not_before_bound="forbid"), not_before=NOW)


def test_start_in_the_past_does_not_buy_a_longer_life() -> None:
    role = make_role(spiffe="own", max_ttl="2h")
    decision = decide_validity(role, not_before=WHOLE - HOUR, ttl=2 * HOUR)
    assert decision.not_after - decision.not_before == 2 * HOUR + BACKDATED
    assert decision.warnings
    with pytest.raises(PolicyViolated):
        decide_validity(role, not_before=WHOLE - HOUR, not_after=WHOLE + 2 * HOUR)
    with pytest.raises(PolicyViolated):
        decide_validity(role, not_before=WHOLE - 5 * HOUR)


def test_start_in_the_future_does_not_move_the_latest_end() -> None:
    role = make_role(spiffe="own", max_ttl="2h")
    decision = decide_validity(role, not_before=WHOLE + HOUR)
    assert decision.not_after == WHOLE + 2 * HOUR
    with pytest.raises(PolicyViolated):
        decide_validity(role, not_before=WHOLE + 3 * HOUR)


@pytest.mark.parametrize("year", [1, 1949, 9999])
def test_start_in_an_absurd_year_is_malformed(year: int) -> None:
    with pytest.raises(InvalidRequest):
        decide_validity(make_role(spiffe="own"), not_before=datetime(year, 1, 1, tzinfo=UTC))


seconds = st.integers(-10_000, 10_000).map(lambda s: timedelta(seconds=s))
lifetimes = st.integers(1, 8_000)


@given(
    max_ttl=lifetimes,
    service_max=lifetimes,
    backdate=st.integers(0, 100),
    bound=st.sampled_from(["permit", "duration", "forbid"]),
    start=st.none() | seconds,
    end=st.none() | seconds,
    ttl=st.none() | seconds,
)
def test_nothing_asked_for_gets_past_max_ttl(
    *,
    max_ttl: int,
    service_max: int,
    backdate: int,
    bound: str,
    start: timedelta | None,
    end: timedelta | None,
    ttl: timedelta | None,
) -> None:
    role = make_role(
        spiffe="own", max_ttl=max_ttl, not_before_duration=backdate, not_before_bound=bound
    )
    bounds = Bounds(TRUST_DOMAIN, timedelta(hours=1), timedelta(seconds=service_max))
    request = CertificateRequest(
        validity=Validity(
            ttl=ttl,
            not_after=None if end is None else NOW + end,
            not_before=None if start is None else NOW + start,
        )
    )
    try:
        decision = decide(role, make_caller(), request, now=NOW, bounds=bounds)
    except MeshmintError:
        return
    longest = timedelta(seconds=min(max_ttl, service_max))
    assert NOW < decision.not_after <= NOW + longest
    assert decision.not_before < decision.not_after
    assert decision.not_after - decision.not_before <= longest + timedelta(seconds=backdate)
    assert decision.not_before.microsecond == decision.not_after.microsecond == 0
