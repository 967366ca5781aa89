"""The decision about a JWT-SVID: what a role grants a caller who asks for one.

Pure, as `decide`: the same arguments always give the same decision, or every violation
at once. The SPIFFE ID is the caller's own, and nothing in the request can change that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from meshmint_server.policy.caller import Caller
from meshmint_server.policy.decide import Bounds
from meshmint_server.policy.durations import LONGEST, format_duration
from meshmint_server.policy.findings import Findings
from meshmint_server.policy.jwt_svid_rules import (
    LONGEST_AUDIENCE,
    JwtSvidRules,
    is_visible_ascii,
)
from meshmint_server.policy.role import Role
from meshmint_server.spiffe import SpiffeId

__all__ = ["MOST_AUDIENCES", "JwtSvidDecision", "JwtSvidRequest", "decide_jwt_svid"]

MOST_AUDIENCES = 16
_SECOND = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class JwtSvidRequest:
    """What is asked for, not yet judged.

    Attributes:
        audiences: Who is to accept the token.
        ttl: The lifetime; None leaves it to the role.
    """

    audiences: tuple[str, ...]
    ttl: timedelta | None = None


@dataclass(frozen=True, slots=True)
class JwtSvidDecision:
    """A granted JWT-SVID: all that issuance may use.

    Attributes:
        role: Name of the role that grants it.
        spiffe_id: The caller's own.
        audiences: Distinct, in the order of the request.
        issued_at: UTC, whole seconds.
        dated: What the token says of it: earlier, for verifiers whose clocks are behind. UTC,
            whole seconds.
        expires_at: UTC, whole seconds.
        warnings: What was changed, for people.
    """

    role: str
    spiffe_id: SpiffeId
    audiences: tuple[str, ...]
    issued_at: datetime
    dated: datetime
    expires_at: datetime
    warnings: tuple[str, ...]


def decide_jwt_svid(
    role: Role, caller: Caller, request: JwtSvidRequest, *, now: datetime, bounds: Bounds
) -> JwtSvidDecision:
    """Decides a request under a role that is for the caller.

    Args:
        role: The role, as choose_jwt_svid_role returned it.
        caller: Who asks.
        request: What is asked for.
        now: The present, UTC.
        bounds: The service's own limits.

    Raises:
        InvalidRequest: Something is malformed; carries every such violation.
        PolicyViolated: Something lies outside the role; carries every violation.
    """
    findings = Findings()
    rules = role.jwt_svid
    if rules is None:
        findings.outside("role", "it grants no JWT-SVIDs; an operator sets its 'jwt_svid'")
    spiffe_id = _own_spiffe_id(caller, bounds, findings)
    audiences = _audiences(rules, request.audiences, findings)
    ttl = _lifetime(role, rules or JwtSvidRules(), request.ttl, findings)
    findings.raise_if_any(role.name)
    assert spiffe_id is not None  # noqa: S101 -- that there is none was noted, and raised
    issued_at = now.replace(microsecond=0)
    return JwtSvidDecision(
        role.name,
        spiffe_id,
        audiences,
        issued_at,
        # As far as certificates are.
        issued_at - role.not_before_duration,
        issued_at + ttl,
        tuple(findings.warnings),
    )


def _own_spiffe_id(caller: Caller, bounds: Bounds, findings: Findings) -> SpiffeId | None:
    """The caller's SPIFFE ID, if it is one that this service may vouch for."""
    own = caller.spiffe_id
    field = "spiffe_id"
    if own is None:
        findings.outside(
            field, "the caller has no SPIFFE ID of its own; its authenticator has to give it one"
        )
    elif own.trust_domain != bounds.trust_domain:
        findings.outside(field, f"{own}: this service is of the trust domain {bounds.trust_domain}")
    elif not own.segments:
        findings.outside(field, f"{own}: a workload's SPIFFE ID has a path")
    elif own == bounds.reserved.spiffe_id:
        findings.outside(field, f"{own} is this service's own name, which no role grants")
    return own


def _audiences(
    rules: JwtSvidRules | None, asked: Sequence[str], findings: Findings
) -> tuple[str, ...]:
    """The audiences asked for, each once."""
    field = "audiences"
    if not asked:
        findings.malformed(field, "name at least one audience: a token is for somebody")
    if len(asked) > MOST_AUDIENCES:
        findings.malformed(
            field, f"at most {MOST_AUDIENCES}; one is best: ask for a token for each"
        )
        return ()
    for index, audience in enumerate(asked):
        place = f"{field}[{index}]"
        if not audience:
            findings.malformed(place, "it is empty")
        elif len(audience) > LONGEST_AUDIENCE or not is_visible_ascii(audience):
            findings.malformed(
                place, f"an audience has at most {LONGEST_AUDIENCE} visible ASCII characters"
            )
        elif "*" in audience:
            findings.malformed(place, 'name the audience itself: "*" stands for nothing in a token')
        elif rules is not None and not rules.allows(audience):
            findings.outside(place, f"the role does not allow the audience {audience}")
    return tuple(dict.fromkeys(asked))


def _lifetime(
    role: Role, rules: JwtSvidRules, asked: timedelta | None, findings: Findings
) -> timedelta:
    field = "ttl"
    if asked is None:
        return rules.ttl or rules.max_ttl
    if not _SECOND <= asked <= LONGEST:
        findings.malformed(
            field, f"a lifetime is at least 1s and at most {format_duration(LONGEST)}"
        )
        return rules.max_ttl
    if asked % _SECOND:
        findings.malformed(field, "a lifetime is in whole seconds")
    if asked > rules.max_ttl:
        longest = format_duration(rules.max_ttl)
        if role.ttl_over_max == "refuse":
            findings.outside(field, f"the role's longest lifetime is {longest}")
        else:
            findings.warn(
                f"ttl: {format_duration(asked)} is over the role's maximum; shortened to {longest}"
            )
        return rules.max_ttl
    return asked
