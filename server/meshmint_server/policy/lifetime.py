"""When a certificate starts and ends.

However start and end are asked for, a certificate never ends later than
max_ttl from now, nor lives longer than max_ttl and the back-dating together.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from meshmint_server.policy.durations import LONGEST, format_duration, format_time
from meshmint_server.policy.findings import Findings
from meshmint_server.policy.request import Validity
from meshmint_server.policy.role import Role

__all__ = ["decide_validity"]

_SECOND = timedelta(seconds=1)
_LAST_YEAR = 9999
_FIRST_YEAR = 1950


@dataclass(frozen=True, slots=True)
class _Limits:
    """The present, the latest end, and the longest and the usual lifetime."""

    now: datetime
    latest: datetime
    longest: timedelta
    default_ttl: timedelta


def decide_validity(
    role: Role,
    asked: Validity,
    findings: Findings,
    *,
    now: datetime,
    default_ttl: timedelta,
    max_ttl: timedelta,
) -> tuple[datetime, datetime]:
    """Decides start and end.

    Args:
        role: The role.
        asked: What the caller asks for.
        findings: Where what is wrong goes.
        now: The present, UTC.
        default_ttl: The service's lifetime for roles without one.
        max_ttl: The service's longest lifetime; a role cannot pass it.

    Returns:
        Start and end, UTC, whole seconds; of no meaning if something is wrong.
    """
    before = findings.count
    longest = min(role.max_ttl or max_ttl, max_ttl)
    not_before = _decide_start(role, asked, findings, now)
    latest = _whole(now + longest)
    if role.not_before is None and not_before < now:
        # A start in the past must not buy a longer life; one that the role fixes is meant.
        latest = min(latest, not_before + longest + role.not_before_duration)
    if role.not_after_ceiling is not None:
        latest = min(latest, role.not_after_ceiling)
    limits = _Limits(now, latest, longest, default_ttl)
    not_after = _decide_end(role, asked, findings, limits)
    if findings.count == before:
        if not_after <= now:
            findings.outside(
                "validity", f"the certificate would have ended {format_time(not_after)}"
            )
        elif not_after <= not_before:
            findings.outside(
                "validity", f"the certificate would end before it starts {format_time(not_before)}"
            )
    return not_before, not_after


def _decide_start(role: Role, asked: Validity, findings: Findings, now: datetime) -> datetime:
    field = "validity.not_before"
    usual = _whole(now) - role.not_before_duration
    wanted = asked.not_before
    if wanted is not None:
        if not _FIRST_YEAR <= wanted.year <= _LAST_YEAR - 1:
            findings.malformed(
                field, f"the year must lie between {_FIRST_YEAR} and {_LAST_YEAR - 1}"
            )
            return usual
        wanted = _whole(wanted)
    if role.not_before is not None:
        if wanted is not None and wanted != role.not_before:
            findings.outside(
                field, f"the role fixes the start at {format_time(role.not_before)}; leave it unset"
            )
        return role.not_before
    if wanted is None:
        return usual
    if role.not_before_bound == "forbid":
        findings.outside(field, "the role does not let callers choose the start; leave it unset")
    elif role.not_before_bound == "duration" and wanted < usual:
        findings.outside(
            field,
            f"the role back-dates by at most {format_duration(role.not_before_duration)}",
        )
    return wanted


def _decide_end(role: Role, asked: Validity, findings: Findings, limits: _Limits) -> datetime:
    latest = limits.latest
    if asked.ttl is not None and asked.not_after is not None:
        findings.malformed("validity", "set either ttl or not_after, not both")
        return latest
    if role.not_after is not None:
        return _fixed_end(role, role.not_after, asked, findings, latest)
    if asked.not_after is not None:
        return _asked_end(role, asked.not_after, findings, limits)
    if asked.ttl is not None:
        return _asked_ttl(role, asked.ttl, findings, limits)
    usual = min(role.ttl or limits.default_ttl, limits.longest)
    return min(_whole(limits.now + usual), latest)


def _fixed_end(
    role: Role, end: datetime, asked: Validity, findings: Findings, latest: datetime
) -> datetime:
    if asked.ttl is not None or (asked.not_after is not None and _whole(asked.not_after) != end):
        field = "validity.ttl" if asked.ttl is not None else "validity.not_after"
        findings.outside(field, f"the role fixes the end at {format_time(end)}; leave it unset")
    if end > latest:
        findings.warn(
            "the role's not_after lies beyond its maximum; "
            f"the certificate ends {format_time(latest)}"
        )
        return latest
    return end


def _asked_end(role: Role, wanted: datetime, findings: Findings, limits: _Limits) -> datetime:
    field = "validity.not_after"
    end = _whole(wanted)
    if end <= limits.now:
        findings.malformed(field, "the end must lie in the future")
    elif role.not_after_bound == "forbid":
        findings.outside(field, "the role does not let callers choose the end; use ttl")
    elif end > limits.latest:
        findings.outside(
            field, f"the role lets certificates end {format_time(limits.latest)} at the latest"
        )
    return end


def _asked_ttl(role: Role, ttl: timedelta, findings: Findings, limits: _Limits) -> datetime:
    latest, longest = limits.latest, limits.longest
    field = "validity.ttl"
    if ttl < _SECOND:
        findings.malformed(field, "a ttl is one second or more")
        return latest
    if ttl > LONGEST:
        findings.malformed(field, f"a ttl is at most {LONGEST.days // 365} years")
        return latest
    end = _whole(limits.now + ttl)
    if end <= latest:
        return end
    if role.ttl_over_max == "refuse":
        findings.outside(field, f"the longest lifetime is {format_duration(longest)}")
    else:
        findings.warn(
            f"ttl is longer than the role allows; the longest lifetime is "
            f"{format_duration(longest)}, and the certificate ends {format_time(latest)}"
        )
    return latest


def _whole(moment: datetime) -> datetime:
    return moment.replace(microsecond=0)
