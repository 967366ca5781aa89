"""When an issuer is to be succeeded, and by which: the decision alone.

A successor is published long before it signs, so that everybody knows its root, and
signs long before its predecessor ends, so that nobody is refused a certificate. The
thresholds are those that SPIRE uses. Pure: no I/O, and the time comes as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509

from meshmint_server.authority.path import anchor_of
from meshmint_server.store import IssuerRow, IssuerState

__all__ = [
    "Rotation",
    "RotationRules",
    "RotationStep",
    "Term",
    "decide",
    "fault_of_successor",
    "known_from",
    "may_go_from",
]

_SPIRE_PREPARE: Final = timedelta(days=30)
_SPIRE_ACTIVATE: Final = timedelta(days=7)
# How much longer than it has to an issuer is kept: for a replica that has not heard yet that
# it retired (`IssuerBook` bounds that), and for clocks that are some minutes apart.
_GRACE: Final = timedelta(minutes=10)


class RotationStep(StrEnum):
    """What comes next in the life of the issuer.

    ``none``: nothing before the due time. ``prepare``: make a new issuer. ``import``: a
    CSR waits for its certificate. ``wait``: the next issuer is published, and not to sign
    yet. ``activate``: it is to sign now.
    """

    NONE = "none"
    PREPARE = "prepare"
    IMPORT = "import"
    WAIT = "wait"
    ACTIVATE = "activate"


@dataclass(frozen=True, slots=True)
class Term:
    """How long an issuer can serve.

    Attributes:
        begin: When it could first sign here: at its publication, or the first moment of its
            certificate if that is later.
        end: When the first certificate of its chain expires, root included.
    """

    begin: datetime
    end: datetime

    @property
    def life(self) -> timedelta:
        """From begin to end."""
        return max(self.end - self.begin, timedelta(0))

    @classmethod
    def of(cls, row: IssuerRow) -> Term | None:
        """The term of an issuer; None without a certificate that can be read."""
        if row.certificate is None:
            return None
        try:
            own, *above = map(
                x509.load_der_x509_certificate, (row.certificate, *row.chain, *row.roots)
            )
        except ValueError:
            return None  # the book of issuers says which
        begin = own.not_valid_before_utc
        if row.published_at is not None:
            begin = max(begin, row.published_at)
        return cls(begin, min(one.not_valid_after_utc for one in (own, *above)))


@dataclass(frozen=True, slots=True)
class RotationRules:
    """The thresholds.

    Attributes:
        publish_for: How long a root is published before anything below it signs.
        longest_leaf: The longest lifetime of a certificate.
        prepare_before: How long before the active issuer's end its successor is prepared;
            None: half its life, at most 30 days or twice the longest leaf.
        activate_before: How long before that end the successor signs; None: a sixth of
            the life, at most 7 days or the longest leaf.
        has_upstream: Whether the service gets certificates for its issuers by itself.
    """

    publish_for: timedelta = timedelta(minutes=25)
    longest_leaf: timedelta = timedelta(hours=768)
    prepare_before: timedelta | None = None
    activate_before: timedelta | None = None
    has_upstream: bool = False

    def prepare_at(self, term: Term) -> datetime:
        """From when on the successor of an issuer is to be prepared."""
        before = self.prepare_before
        if before is None:
            before = min(term.life / 2, max(_SPIRE_PREPARE, 2 * self.longest_leaf))
        return term.end - before

    def activate_at(self, term: Term) -> datetime:
        """From when on the successor of an issuer is to sign."""
        before = self.activate_before
        if before is None:
            before = min(term.life / 6, max(_SPIRE_ACTIVATE, self.longest_leaf))
        return term.end - before


@dataclass(frozen=True, slots=True)
class Rotation:
    """How far the rotation is.

    Attributes:
        step: What comes next.
        due: When, or since when; None where only an operator can help.
        active: Name of the active issuer.
        ends: When it ends.
        next: Name of the issuer that is pending or next.
        obstacle: Why the next one cannot take over, one sentence; None if it can.
        is_automatic: Whether the service does the step by itself.
        is_urgent: Whether the successor should be signing already, and is not.
        last_failure: Why the service's own last try of the step failed.
    """

    step: RotationStep
    due: datetime | None
    active: str | None
    ends: datetime | None
    next: str | None
    obstacle: str | None
    is_automatic: bool
    is_urgent: bool
    last_failure: str | None


def decide(rows: Sequence[IssuerRow], now: datetime, rules: RotationRules) -> Rotation:
    """What comes next, and when.

    Args:
        rows: Every issuer.
        now: The present.
        rules: The thresholds.
    """
    active = next((row for row in rows if row.state is IssuerState.ACTIVE), None)
    term = None if active is None else Term.of(active)
    signs = term is not None and now < term.end
    step, due, row, obstacle = _step(rows, active if signs else None, now, rules)
    needs_upstream = step in (RotationStep.NONE, RotationStep.PREPARE, RotationStep.IMPORT)
    failure = None if row is None else row.last_failure
    is_late = term is None or now >= rules.activate_at(term)
    return Rotation(
        step=step,
        due=due,
        active=None if active is None else active.name,
        ends=None if term is None else term.end,
        next=None if row is None else row.name,
        obstacle=obstacle,
        is_automatic=rules.has_upstream if needs_upstream else obstacle is None,
        is_urgent=not signs
        or (is_late and (step is not RotationStep.ACTIVATE or failure is not None)),
        last_failure=failure,
    )


def _step(
    rows: Sequence[IssuerRow], active: IssuerRow | None, now: datetime, rules: RotationRules
) -> tuple[RotationStep, datetime | None, IssuerRow | None, str | None]:
    """The step, when it is due, the issuer it is about, and what keeps that one from signing.

    Args:
        rows: Every issuer.
        active: The active issuer, unless it has expired.
        now: The present.
        rules: The thresholds.
    """
    term = None if active is None else Term.of(active)
    following = [row for row in rows if row.state is IssuerState.NEXT]
    ready = [
        (fault_of_successor(row, active, now, rules), its, row)
        for row in following
        if (its := Term.of(row)) is not None and not (rules.has_upstream and now >= its.end)
    ]
    if ready:
        # Of several, one that can take over; of those, the one that lasts longest.
        obstacle, _, row = max(ready, key=lambda one: (one[0] is None, one[1].end))
        if obstacle is not None:
            return RotationStep.WAIT, None, row, obstacle
        if active is None or term is None:
            return RotationStep.ACTIVATE, now, row, None
        due = min(max(rules.activate_at(term), known_from(row, rows, rules)), term.end)
        return (RotationStep.WAIT if now < due else RotationStep.ACTIVATE), due, row, None
    due = now if term is None else rules.prepare_at(term)
    waiting = [row for row in rows if row.state is IssuerState.PENDING]
    if rules.has_upstream:
        # One that expired unused gets another certificate: a new issuer instead would be a key
        # for every certificate of an upstream that signs short ones.
        waiting += following
    if waiting:
        return RotationStep.IMPORT, due, max(waiting, key=lambda row: row.created_at), None
    return (RotationStep.NONE if now < due else RotationStep.PREPARE), due, None, None


def fault_of_successor(
    row: IssuerRow, active: IssuerRow | None, now: datetime, rules: RotationRules
) -> str | None:
    """Why an issuer must not take over by itself, one sentence; None if it may.

    Args:
        row: The successor.
        active: The issuer before, unless that has expired.
        now: The present.
        rules: The thresholds.
    """
    term = Term.of(row)
    before = None if active is None else Term.of(active)
    if term is None:
        return f"The issuer '{row.name}' has no certificate that can be read."
    if now >= term.end:
        return f"The issuer '{row.name}' or its chain expired at {_time(term.end)}."
    if active is None or before is None:
        return None
    if now >= rules.activate_at(term):
        return (
            f"The issuer '{row.name}' or its chain ends at {_time(term.end)}, too soon to take "
            "over: it would have to be succeeded itself."
        )
    if term.end <= before.end:
        return (
            f"The issuer '{row.name}' or its chain ends at {_time(term.end)}, no later than the "
            f"active one, '{active.name}'."
        )
    return None


def known_from(row: IssuerRow, rows: Sequence[IssuerRow], rules: RotationRules) -> datetime:
    """From when on everybody can know the roots of an issuer, which is published.

    SPIFFE Federation section 3.3: new keys are published before they are used. A root
    below which the active issuer signs is in use already.
    """
    publishers = [row, *(one for one in rows if one.state.is_published)]
    in_use = {anchor for one in rows if one.state is IssuerState.ACTIVE for anchor in _anchors(one)}
    since = [
        min(one.published_at or one.created_at for one in publishers if anchor in _anchors(one))
        for anchor in _anchors(row) - in_use
    ]
    return max(since) + rules.publish_for if since else row.created_at


def _anchors(row: IssuerRow) -> set[tuple[bytes, bytes]]:
    return {anchor_of(root) for root in row.roots}


def may_go_from(
    row: IssuerRow, latest_leaf: datetime | None, rules: RotationRules
) -> datetime | None:
    """From when on nothing live chains to an issuer, which then goes; None: not by itself.

    Args:
        row: The issuer.
        latest_leaf: When the last of its recorded certificates expires.
        rules: The longest leaf lifetime, for certificates that are not recorded.
    """
    term = Term.of(row)
    if term is None or row.state not in (IssuerState.NEXT, IssuerState.RETIRED):
        return None
    if row.state is IssuerState.NEXT and rules.has_upstream:
        return None  # its certificate is renewed
    if row.state is IssuerState.NEXT or row.retired_at is None:
        return term.end
    # As it was when it signed: 'max_ttl' may have been shortened since.
    longest = max(rules.longest_leaf, row.longest_leaf or timedelta(0))
    last = max(row.retired_at + longest, latest_leaf or row.retired_at)
    return min(term.end, last + min(_GRACE, longest))


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
