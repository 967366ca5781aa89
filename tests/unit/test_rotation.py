"""When an issuer is succeeded: the decision, over every order of events and every clock."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from meshmint_server.authority import (
    Rotation,
    RotationRules,
    RotationStep,
    decide,
    describe_rotation,
)
from meshmint_server.authority.rotation import Term, known_from, may_go_from
from meshmint_server.authority.states import activated, gone
from meshmint_server.errors import PreconditionFailed
from meshmint_server.store import IssuerRow, IssuerState
from support.pki import Authority, make_root
from support.rows import issuer_row

NOW = datetime(2031, 5, 4, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RULES = RotationRules(publish_for=2 * HOUR, longest_leaf=DAY)


def root_until(end: datetime) -> Authority:
    return make_root(not_before=NOW - 1000 * DAY, not_after=end)


KEY = ec.generate_private_key(ec.SECP256R1())
ROOTS = [root_until(NOW + 5000 * DAY) for _ in range(3)]


def row(name: str, state: IssuerState, end: datetime, root: Authority = ROOTS[0], **changes):
    """An issuer whose certificate ends at `end`; published when its life began, 100 days ago."""
    begin = changes.pop("begin", NOW - 100 * DAY)
    issuer = root.make_intermediate(name, key=KEY, not_before=begin, not_after=end)
    whole = {
        "name": name,
        "state": state,
        "certificate": issuer.certificate.public_bytes(Encoding.DER),
        "roots": (root.certificate.public_bytes(Encoding.DER),),
        "created_at": begin,
        "published_at": begin,
        **changes,
    }
    return issuer_row(**whole)


def active(end: datetime = NOW + 100 * DAY, **changes) -> IssuerRow:
    return row("one", IssuerState.ACTIVE, end, **changes)


def following(end: datetime = NOW + 400 * DAY, **changes) -> IssuerRow:
    return row("two", IssuerState.NEXT, end, **changes)


def step(*rows: IssuerRow, now: datetime = NOW, rules: RotationRules = RULES) -> Rotation:
    return decide(rows, now, rules)


# The thresholds


@pytest.mark.parametrize(
    ("life", "longest_leaf", "prepare", "activate"),
    [
        pytest.param(365 * DAY, HOUR, 30 * DAY, 7 * DAY, id="as-spire-a-year"),
        pytest.param(24 * HOUR, HOUR, 12 * HOUR, 4 * HOUR, id="as-spire-a-day"),
        pytest.param(365 * DAY, 32 * DAY, 64 * DAY, 32 * DAY, id="leaves-of-a-month"),
        pytest.param(60 * DAY, 32 * DAY, 30 * DAY, 10 * DAY, id="leaves-longer-than-a-sixth"),
    ],
)
def test_thresholds_are_spires_and_leave_room_for_long_leaves(
    life: timedelta, longest_leaf: timedelta, prepare: timedelta, activate: timedelta
):
    rules, term = RotationRules(longest_leaf=longest_leaf), Term(NOW, NOW + life)
    assert term.end - rules.prepare_at(term) == prepare
    assert term.end - rules.activate_at(term) == activate


def test_thresholds_can_be_set():
    rules = RotationRules(prepare_before=3 * DAY, activate_before=2 * DAY)
    term = Term(NOW, NOW + 10 * DAY)
    assert (rules.prepare_at(term), rules.activate_at(term)) == (NOW + 7 * DAY, NOW + 8 * DAY)


def test_a_life_begins_with_the_publication_and_ends_with_the_first_of_the_chain():
    short = root_until(NOW + 10 * DAY)
    late = following(NOW + 50 * DAY, root=short, published_at=NOW)
    assert Term.of(late) == Term(NOW, NOW + 10 * DAY)
    assert Term.of(replace(late, certificate=b"broken")) is None
    assert Term.of(issuer_row()) is None


# Step by step


def test_without_an_issuer_one_is_to_be_made_now():
    found = step()
    assert (found.step, found.due, found.is_urgent) == (RotationStep.PREPARE, NOW, True)
    assert "nothing can be issued" in describe_rotation(found)
    assert "meshmintd ca rotate" in describe_rotation(found)


def test_a_young_issuer_asks_for_nothing_and_says_from_when_on():
    found = step(active())
    assert (found.step, found.due) == (RotationStep.NONE, NOW + 70 * DAY)
    assert not found.is_urgent


def test_long_before_its_end_a_successor_is_to_be_made():
    found = step(active(NOW + 29 * DAY))
    assert (found.step, found.due, found.is_urgent) == (
        RotationStep.PREPARE, NOW - DAY, False,
    )  # fmt: skip
    assert not found.is_automatic
    assert step(active(NOW + 29 * DAY), rules=replace(RULES, has_upstream=True)).is_automatic


def test_a_pending_issuer_waits_for_its_certificate():
    pending = issuer_row(name="two", created_at=NOW, last_failure="no answer")
    found = step(active(NOW + 29 * DAY), pending)
    assert (found.step, found.next, found.due) == (RotationStep.IMPORT, "two", NOW - DAY)
    assert "ca rotate CERTIFICATE" in describe_rotation(found)
    assert describe_rotation(found).endswith("The last try failed: no answer")


def test_an_issuer_of_a_known_root_waits_for_the_end_of_the_other_alone():
    found = step(active(NOW + 20 * DAY), following(published_at=NOW))
    assert (found.step, found.due) == (RotationStep.WAIT, NOW + 13 * DAY)
    found = step(active(NOW + 7 * DAY), following(published_at=NOW))
    assert (found.step, found.next) == (RotationStep.ACTIVATE, "two")


def test_an_issuer_of_a_new_root_waits_until_everybody_can_know_it():
    new = following(root=ROOTS[1], published_at=NOW - HOUR)
    found = step(active(NOW + 3 * DAY), new)
    assert (found.step, found.due, found.is_urgent) == (RotationStep.WAIT, NOW + HOUR, True)
    assert step(active(NOW + 3 * DAY), new, now=NOW + HOUR).step is RotationStep.ACTIVATE


def test_a_root_that_another_issuer_has_published_long_ago_is_known():
    new = following(root=ROOTS[1], published_at=NOW)
    retired = row("old", IssuerState.RETIRED, NOW + DAY, root=ROOTS[1])
    assert step(active(NOW + 3 * DAY), new, retired).step is RotationStep.ACTIVATE
    was = replace(retired, state=IssuerState.GONE)
    assert step(active(NOW + 3 * DAY), new, was).step is RotationStep.WAIT


def test_when_the_active_issuer_has_expired_nobody_waits_for_a_root():
    new = following(root=ROOTS[1], published_at=NOW)
    found = step(active(NOW - HOUR), new)
    assert (found.step, found.is_urgent) == (RotationStep.ACTIVATE, True)


@pytest.mark.parametrize(
    ("successor", "obstacle"),
    [
        pytest.param(following(NOW - HOUR), "expired at", id="expired"),
        pytest.param(following(NOW + 5 * DAY), "too soon to take over", id="nearly-expired"),
        pytest.param(following(NOW + 20 * DAY), "no later than the active", id="same-end"),
        pytest.param(
            following(root=root_until(NOW + 19 * DAY)), "no later than the active", id="root-ends"
        ),
    ],
)
def test_an_issuer_that_does_not_outlast_the_active_one_never_takes_over(
    successor: IssuerRow, obstacle: str
):
    before = active(NOW + 20 * DAY)
    for hours in range(0, 20 * 24, 12):
        found = step(before, successor, now=NOW + hours * HOUR)
        assert (found.step, found.due) == (RotationStep.WAIT, None)
        assert not found.is_automatic
    found = step(before, successor)
    assert obstacle in (found.obstacle or "")
    assert "ca remove two" in describe_rotation(found)


def test_of_several_the_one_that_lasts_longest_takes_over():
    shorter = row("three", IssuerState.NEXT, NOW + 300 * DAY)
    useless = row("four", IssuerState.NEXT, NOW + 6 * DAY)
    found = step(active(NOW + 7 * DAY), shorter, following(), useless)
    assert (found.step, found.next) == (RotationStep.ACTIVATE, "two")


def test_the_alarm_is_raised_long_before_certificates_are_refused():
    rules = RotationRules(longest_leaf=32 * DAY)
    last = active(begin=NOW, end=NOW + 365 * DAY)
    prepare, urgent = NOW + 301 * DAY, NOW + 333 * DAY
    assert step(last, now=prepare - HOUR, rules=rules).step is RotationStep.NONE
    assert step(last, now=prepare, rules=rules).step is RotationStep.PREPARE
    assert not step(last, now=urgent - HOUR, rules=rules).is_urgent
    assert step(last, now=urgent, rules=rules).is_urgent
    # From then on one of the longest lifetime would outlive the issuer.
    assert urgent + rules.longest_leaf == last_end(last)


def last_end(row: IssuerRow) -> datetime:
    term = Term.of(row)
    assert term
    return term.end


# The end


def test_an_issuer_goes_when_nothing_live_chains_to_it():
    retired = row("old", IssuerState.RETIRED, NOW + 50 * DAY, retired_at=NOW)
    # What a replica signs that hears of it late, and clocks that are not the same.
    grace = timedelta(minutes=10)
    assert may_go_from(retired, None, RULES) == NOW + DAY + grace
    assert may_go_from(retired, NOW + 3 * DAY, RULES) == NOW + 3 * DAY + grace
    seconds = replace(RULES, longest_leaf=timedelta(seconds=9))
    assert may_go_from(retired, None, seconds) == NOW + timedelta(seconds=18)
    assert may_go_from(retired, NOW + 90 * DAY, RULES) == NOW + 50 * DAY
    assert may_go_from(replace(retired, retired_at=None), None, RULES) == NOW + 50 * DAY
    assert may_go_from(following(NOW + 5 * DAY), None, RULES) == NOW + 5 * DAY
    assert may_go_from(active(NOW - DAY), None, RULES) is None
    with pytest.raises(PreconditionFailed, match="may live until 2031-05-05T12:10:00Z"):
        gone(retired, None, NOW + DAY - HOUR, RULES)
    assert gone(retired, None, NOW + DAY + grace, RULES).state is IssuerState.GONE
    assert gone(retired, None, NOW, RULES, at_once=True).state is IssuerState.GONE


# Whatever happens


@st.composite
def worlds(draw: st.DrawFn) -> tuple[tuple[IssuerRow, ...], datetime, RotationRules]:
    """Issuers in any state and of any age, a time, and thresholds."""
    hours = st.integers(-200, 2000)
    rows = []
    states = draw(st.lists(st.sampled_from(list(IssuerState)), max_size=5))
    has_active = False
    for number, state in enumerate(states):
        if state is IssuerState.ACTIVE:
            if has_active:
                continue
            has_active = True
        if state is IssuerState.PENDING:
            rows.append(issuer_row(name=f"issuer-{number}", created_at=NOW))
            continue
        published = NOW + draw(hours) * HOUR
        rows.append(
            row(
                f"issuer-{number}", state, NOW + draw(hours) * HOUR,
                root=draw(st.sampled_from(ROOTS)),
                begin=NOW - 300 * HOUR, published_at=published,
                retired_at=published if state is IssuerState.RETIRED else None,
            )
        )  # fmt: skip
    rules = RotationRules(
        publish_for=draw(st.integers(1, 100)) * HOUR,
        longest_leaf=draw(st.integers(1, 800)) * HOUR,
        prepare_before=draw(st.none() | st.just(200 * HOUR)),
        activate_before=draw(st.none() | st.just(100 * HOUR)),
        has_upstream=draw(st.booleans()),
    )
    return tuple(rows), NOW + draw(hours) * HOUR, rules


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_nobody_signs_before_its_time(
    world: tuple[tuple[IssuerRow, ...], datetime, RotationRules],
):
    rows, now, rules = world
    found = decide(rows, now, rules)
    assert describe_rotation(found)
    if found.step is not RotationStep.ACTIVATE:
        return
    (chosen,) = (one for one in rows if one.name == found.next)
    assert chosen.state is IssuerState.NEXT
    term = Term.of(chosen)
    assert term is not None
    assert now < term.end
    before = next((one for one in rows if one.state is IssuerState.ACTIVE), None)
    its = None if before is None else Term.of(before)
    if before is not None and its is not None and now < its.end:
        assert now >= known_from(chosen, rows, rules)
        assert now >= rules.activate_at(its)
        assert term.end > its.end
    # What is decided is what is allowed: the two never disagree.
    now_active = activated(chosen, rows, now, rules)
    assert (now_active.state, now_active.activated_at) == (IssuerState.ACTIVE, now)


ORDER = list(IssuerState)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 200), min_size=5, max_size=60),
    st.lists(st.tuples(st.integers(1, 900), st.sampled_from(ROOTS)), min_size=30, max_size=30),
)
def test_states_move_forward_with_one_active_issuer_at_most(
    pauses: list[int], certificates: list[tuple[int, Authority]]
):
    rules = RotationRules(publish_for=5 * HOUR, longest_leaf=10 * HOUR, has_upstream=True)
    rows: list[IssuerRow] = []
    now = NOW
    for pause in pauses:
        now += pause * HOUR
        before = {one.name: one.state for one in rows}
        found = decide(rows, now, rules)
        match found.step:
            case RotationStep.PREPARE:
                rows.append(issuer_row(name=f"issuer-{len(rows)}", created_at=now))
            case RotationStep.IMPORT if certificates and found.due and found.due <= now:
                hours, root = certificates.pop()
                new = row(
                    found.next or "", IssuerState.NEXT, now + hours * HOUR, root=root,
                    begin=now, published_at=now,
                )  # fmt: skip
                rows = [new if one.name == found.next else one for one in rows]
            case RotationStep.ACTIVATE:
                new = activated(
                    next(one for one in rows if one.name == found.next), rows, now, rules
                )
                rows = [
                    new
                    if one.name == new.name
                    else replace(one, state=IssuerState.RETIRED, retired_at=now)
                    if one.state is IssuerState.ACTIVE
                    else one
                    for one in rows
                ]
        rows = [
            gone(one, None, now, rules)
            if (due := may_go_from(one, None, rules)) is not None and due <= now
            else one
            for one in rows
        ]
        assert sum(one.state is IssuerState.ACTIVE for one in rows) <= 1
        for one in rows:
            if one.name in before:
                assert ORDER.index(one.state) >= ORDER.index(before[one.name])
        # Nothing is published for nothing: each step makes one issuer at most.
        assert len(rows) <= len(before) + 1
