"""bench/fleet: no request is lost, and what can be worked out by hand comes out."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest
from fleet.agent import Agent
from fleet.course import STEP, Course
from fleet.measured import Replica
from fleet.page import page
from fleet.plot import plot
from fleet.service import Service
from fleet.simulation import Absence, Event, Fleet, Restart, simulate
from meshmint.agent.config import RenewalSettings
from meshmint.errors import ResourceExhausted, Unavailable

EXACT = RenewalSettings(fraction=0.5, jitter=0)
HOUR = 3600.0


def replica(**changes: float) -> Replica:
    """One that makes a certificate in a second, and a connection in another."""
    values: dict[str, float] = {
        "cores": 2, "workers": 2, "certificates": 1.0, "handshake": 0.75, "aside": 0.25,
        "room": 1000, "retry_after": 0.5, "time_limit": 10.0, "watchers": 1, "connection_bytes": 1,
    }  # fmt: skip
    return Replica(**{**values, **changes})  # type: ignore[arg-type]


def small(event: Event, replicas: float, *, hours: float = 1.0, **changes: float) -> Course:
    fleet = Fleet(workloads=1200, renewal=EXACT)
    return simulate(fleet, replica(**changes), replicas, event, hours=hours)


def asked(course: Course) -> int:
    became = ("answered", "refused", "late", "lost", "unanswered")
    return sum(course.total(what) for what in became)


# --- the service -------------------------------------------------------------------------


def test_a_replica_makes_so_many_certificates_a_second_in_the_order_of_requests() -> None:
    service = Service(replica(certificates=20), 1, STEP)
    assert all(service.ask(request, 0.0, 9) for request in range(10))
    answered = [service.work(step * STEP).answered for step in range(1, 6)]
    assert answered == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert service.unanswered() == 0


def test_time_that_nobody_wanted_is_not_kept() -> None:
    service = Service(replica(certificates=10), 1, STEP)
    for step in range(100):
        service.work(step * STEP)
    service.ask(0, 10.0, 9)
    service.ask(1, 10.0, 9)
    assert len(service.work(10.0).answered) == 1


def test_who_finds_no_room_is_refused_when_there_is_time_to_say_so() -> None:
    service = Service(replica(certificates=10, room=1, aside=0.25), 1, STEP)
    assert [service.ask(request, 0.0, 9) for request in range(2)] == [True, False]
    done = [service.work(step * STEP) for step in range(1, 8)]
    assert [one.refused for one in done] == [[1], [], [], [], [], [], []]
    # The refusal has taken two steps and a half.
    assert [one.answered for one in done] == [[], [], [0], [], [], [], []]


def test_a_request_ends_when_its_time_is_over_or_its_clients() -> None:
    service = Service(replica(certificates=0.1), 1, STEP)
    for request, patience in ((0, 60.0), (1, 5.0), (2, 60.0)):
        service.ask(request, 0.0, patience)
    assert service.work(0.0).answered == [0]
    assert service.work(4.9).late == []
    assert service.work(5.0).late == [1]
    assert service.work(10.0).late == [2]


def test_certificates_and_all_else_have_half_of_the_time_each_while_both_wait() -> None:
    service = Service(replica(certificates=20, handshake=0.025, aside=0.025), 1, STEP)
    for index in range(10):
        service.connect(index)
        service.ask(index, 0.0, 9)
    done = [service.work(step * STEP) for step in range(1, 11)]
    assert [(len(one.connected), len(one.answered)) for one in done] == [(1, 1)] * 10


# --- agents ------------------------------------------------------------------------------


def test_agents_decide_by_their_own_settings_and_back_off() -> None:
    agent = Agent(RenewalSettings(fraction=0.6, jitter=0.1), HOUR, Random(1), lambda: 0.0)  # noqa: S311
    drawn = [agent.renews_after() for _ in range(2000)]
    assert 1800 <= min(drawn) < 1810
    assert 2510 < max(drawn) <= 2520
    assert sum(drawn) / len(drawn) == pytest.approx(2160, rel=0.02)
    away, full = Unavailable(""), ResourceExhausted("", reason="OVERLOADED", retry_after=0.5)
    assert max(agent.pause(9, 1800.0, away) for _ in range(2000)) == pytest.approx(180, rel=0.02)
    assert max(agent.pause(9, None, away) for _ in range(2000)) == pytest.approx(30, rel=0.02)
    assert min(agent.pause(9, None, full) for _ in range(2000)) == pytest.approx(0.5, abs=0.1)
    # Four pauses, of a tenth, two, four and eight tenths of a second at most.
    assert max(agent.call_in_vain() for _ in range(5000)) < 1.5


# --- fleets ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "event",
    [None, Restart(60), Restart(60, keeps=True), Restart(60, one_of=1, within=1), Absence(60, 900)],
)
@pytest.mark.parametrize("replicas", [0.5, 2, 50])
def test_every_request_is_answered_refused_late_or_lost_and_every_workload_goes_on(
    event: Event, replicas: float
) -> None:
    # Half a replica never gets over it, and no request is lost all the same.
    hours = 1.5 if replicas > 1 else 0.3
    course = small(event, replicas, hours=hours, room=20, certificates=4.0)

    assert course.total("arrived") == asked(course)
    if replicas > 1:
        assert course.total("unanswered") == 0
        assert course.without()[-1] == 0
        assert course.served_after(1.0) is not None
        # In the last half hour each has renewed once.
        assert sum(course.rates("answered")[-180:]) * 10 == pytest.approx(1200, abs=6)


def test_at_rest_requests_come_as_often_as_lifetimes_say() -> None:
    course = small(None, 50, hours=2)
    # 1,200 workloads, each every half an hour.
    assert course.total("arrived") == 2 * 1200 * 2
    assert course.total("answered") == 4800
    assert course.lapses() == 0
    assert course.wait(1.0) <= STEP


def test_a_restart_takes_as_long_as_connections_and_certificates_take_together() -> None:
    # A second each, 1,200 of both, 200 replicas: 12 seconds, evenly.
    course = small(Restart(60, one_of=1, within=0.0), 200)
    assert course.awaited == 1200
    assert course.served_after(1.0) == pytest.approx(12, abs=0.3)
    assert course.served_after(0.5) == pytest.approx(6, abs=0.3)


def test_with_kept_certificates_only_those_ask_that_are_due() -> None:
    course = small(Restart(60, one_of=1, within=0.0, keeps=True), 500)
    assert course.awaited == 0
    assert course.lapses() == 0


def test_those_expire_whose_certificates_end_while_the_service_is_away() -> None:
    # Renewal after 30 minutes leaves 30: of 40 minutes away the last ten are too many. A third of
    # the fleet, whose certificates were older than 20 minutes.
    course = small(Absence(60, 2400.0), 5000, hours=1.5)
    back_at = 60 + 2400.0
    expired = course.lapses() - course.lapses(back_at)
    assert expired / 1200 == pytest.approx(1 / 3, abs=0.04)
    assert max(course.without()) == pytest.approx(expired, abs=60)
    # A pause may last three minutes, a tenth of the time between renewals.
    assert course.lapses(back_at) < 1200 * 0.1
    # All were due within 40 minutes.
    assert course.awaited == 1200


def test_one_in_many_stands_for_all() -> None:
    fleet = Fleet(workloads=24_000, renewal=EXACT)
    whole, part = (
        simulate(fleet, replica(), 1000, Restart(60, within=10), hours=0.1, one_in=one_in)
        for one_in in (1, 20)
    )
    assert part.awaited == whole.awaited == 8000
    assert part.served_after(0.9) == pytest.approx(whole.served_after(0.9), rel=0.1)
    assert sum(part.rates("answered")) == pytest.approx(sum(whole.rates("answered")), rel=0.1)


# --- what is written -----------------------------------------------------------------------

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations"
SVG = "{http://www.w3.org/2000/svg}"


def test_page_and_plot_are_what_their_figures_make() -> None:
    document = json.loads((OPERATIONS / "fleet.json").read_text("utf-8"))
    assert page(document) == (OPERATIONS / "fleet.md").read_text("utf-8")
    assert plot(document) == (OPERATIONS / "fleet.svg").read_text("utf-8")


def test_the_plot_has_a_row_for_each_event_and_stays_within_its_panels() -> None:
    image = ElementTree.parse(OPERATIONS / "fleet.svg").getroot()  # noqa: S314 - our own
    headings = [text for text in image.iter(f"{SVG}text") if text.get("class") == "heading"]
    assert len(headings) == 4
    tops = [float(heading.attrib["y"]) + 48 for heading in headings]
    for polyline in image.iter(f"{SVG}polyline"):
        heights = [float(place.split(",")[1]) for place in polyline.attrib["points"].split()]
        assert any(top <= min(heights) and max(heights) <= top + 150 for top in tops)


def test_replicas_do_what_was_measured() -> None:
    measured = Replica.measured()
    assert measured.cores == 2
    # Seconds of a machine like this one; to refuse is cheaper than to sign.
    assert 0.0001 < measured.handshake < 0.01
    assert 0.00001 < measured.aside < 1 / measured.certificates < 0.01
    assert measured.behind_a_slow_hsm(20).certificates < measured.certificates
