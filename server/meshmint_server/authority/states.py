"""From one state of an issuer to the next, and one step back.

``pending`` → ``next`` → ``active`` → ``retired`` → ``gone``; an issuer that was never used
goes without having signed, and an operator may have a retired one sign again: its
certificate is still known everywhere, so that is the quickest way out of a rotation gone
wrong. What is made here is only a value: whoever writes it does so
at the revision that it was made from, so that no two decisions are taken at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from meshmint_server.authority.rotation import (
    RotationRules,
    Term,
    fault_of_successor,
    known_from,
    may_go_from,
)
from meshmint_server.errors import PreconditionFailed, StoreUnavailable
from meshmint_server.store import IssuerRow, IssuerState

__all__ = ["activated", "changed_meanwhile", "gone"]


def activated(
    row: IssuerRow,
    rows: Sequence[IssuerRow],
    now: datetime,
    rules: RotationRules,
    *,
    at_once: bool = False,
) -> IssuerRow:
    """An issuer that is published, next or retired, as the one that signs.

    Args:
        row: The issuer; if it is the active one already, with a certificate anew.
        rows: Every issuer as it is kept.
        now: The present.
        rules: The thresholds.
        at_once: Although not everybody can know its root yet, and even if it ends before
            the active one.

    Raises:
        PreconditionFailed: It must not sign, or not yet.
    """
    term = Term.of(row)
    if term is None or now >= term.end:
        raise _refusal(
            fault_of_successor(row, None, now, rules) or "", reason="ISSUER_NOT_FIT_TO_SIGN"
        )
    active = next((one for one in rows if one.state is IssuerState.ACTIVE), None)
    before = None if active is None else Term.of(active)
    if active is not None and before is not None and now < before.end and not at_once:
        known = known_from(row, rows, rules)
        if now < known:
            raise _refusal(
                f"The root of the issuer '{row.name}' has to be published until {_time(known)} "
                "before anything is signed below it: whoever does not know it yet would refuse "
                "that. Publish it as the next one, and wait.",
                reason="ROOT_NOT_KNOWN_YET",
            )
        fault = fault_of_successor(row, active, now, rules)
        # The same end is an operator's business; a rotation by itself would go round in circles.
        if fault is not None and active.name != row.name and term.end != before.end:
            raise _refusal(
                f"{fault} If that is meant: 'meshmintd ca rotate --activate {row.name} --at-once'.",
                reason="ISSUER_NOT_FIT_TO_SIGN",
            )
    return replace(
        row,
        state=IssuerState.ACTIVE,
        # Of the switch, also on the way back: the one before retires at this moment.
        activated_at=(row.activated_at if active and active.name == row.name else None) or now,
        retired_at=None,
        last_failure=None,
    )


def gone(
    row: IssuerRow,
    latest_leaf: datetime | None,
    now: datetime,
    rules: RotationRules,
    *,
    at_once: bool = False,
) -> IssuerRow:
    """An issuer that is not published any more.

    Args:
        row: The issuer.
        latest_leaf: When the last of its recorded certificates expires.
        now: The present.
        rules: The longest leaf lifetime.
        at_once: Even though certificates live that chain to it.

    Raises:
        PreconditionFailed: It signs, or certificates live that chain to it.
    """
    if row.state is IssuerState.ACTIVE:
        raise _refusal(
            f"The issuer '{row.name}' is active. Activate another one first.",
            reason="ISSUER_ACTIVE",
        )
    if row.state is IssuerState.RETIRED and not at_once:
        due = may_go_from(row, latest_leaf, rules)
        if due is None or now < due:
            until = "" if due is None else f" until {_time(due)}"
            raise _refusal(
                f"Certificates that the issuer '{row.name}' signed may live{until}. It goes by "
                "itself afterwards.",
                reason="ISSUER_IN_USE",
            )
    return replace(row, state=IssuerState.GONE, last_failure=None)


def changed_meanwhile() -> StoreUnavailable:
    """Somebody else wrote first."""
    return StoreUnavailable(
        "The issuers have been changed by somebody else meanwhile. Try again.",
        reason="ISSUERS_CHANGED",
    )


def _refusal(message: str, *, reason: str) -> PreconditionFailed:
    return PreconditionFailed(message, reason=reason)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
