"""The decision: what a role grants a caller who asks for a certificate.

Pure: the same arguments always give the same Decision, or every violation at
once. Nothing asked for is dropped without a warning or a violation.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509

from meshmint_server.policy.caller import Caller
from meshmint_server.policy.decision import Decision, Grant
from meshmint_server.policy.findings import Findings
from meshmint_server.policy.granted_names import GrantedNames, decide_names
from meshmint_server.policy.lifetime import decide_validity
from meshmint_server.policy.request import CertificateRequest, KeyAlgorithm, PublicKey, shape_of
from meshmint_server.policy.reserved import ReservedNames
from meshmint_server.policy.role import Role
from meshmint_server.policy.subject import build_subject
from meshmint_server.policy.subject_keys import check_csr_usages, decide_key, decide_key_usage
from meshmint_server.spiffe import TrustDomain

__all__ = ["Bounds", "Decider", "decide"]

_LONGEST_SHAPE = 2048


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the service sets for all roles.

    Attributes:
        trust_domain: The service's own.
        default_ttl: Lifetime where neither role nor caller says one.
        max_ttl: The longest lifetime; roles cannot pass it.
        reserved: Names that no role grants.
    """

    trust_domain: TrustDomain
    default_ttl: timedelta
    max_ttl: timedelta
    reserved: ReservedNames = field(default_factory=ReservedNames)


def decide(
    role: Role, caller: Caller, request: CertificateRequest, *, now: datetime, bounds: Bounds
) -> Decision:
    """Decides a request under a role that is for the caller.

    Args:
        role: The role, as choose_role returned it.
        caller: Who asks.
        request: What is asked for.
        now: The present, UTC.
        bounds: The service's own limits.

    Raises:
        InvalidRequest: Something is malformed; carries every such violation.
        PolicyViolated: Something lies outside the role; carries every violation.
    """
    return _decide(role, caller, request, None, now=now, bounds=bounds)


class Decider:
    """Decides, and remembers what it granted: the same again costs only a look at the time.

    A grant depends on nothing but role, caller, bounds and the request's shape, which is
    all that it holds but the validity and the key's value. A refusal is never remembered.

    Args:
        most: How many grants are remembered; none that is large or was asked for at length,
            which would fill memory.
    """

    def __init__(self, most: int = 2048) -> None:
        self._most = most
        # Roles and callers stand beside the grant: identity is theirs while they live.
        self._grants: OrderedDict[object, tuple[Role, Caller, Bounds, Grant]] = OrderedDict()

    def decide(
        self,
        role: Role,
        caller: Caller,
        request: CertificateRequest,
        *,
        now: datetime,
        bounds: Bounds,
    ) -> Decision:
        """See `decide`: the same decisions, and the same refusals."""
        shape = shape_of(request)
        place = (id(role), id(caller), id(bounds), shape)
        known = self._grants.get(place)
        if known is not None:
            self._grants.move_to_end(place)
            return _decide(role, caller, request, known[3], now=now, bounds=bounds)
        decision = _decide(role, caller, request, None, now=now, bounds=bounds)
        if not decision.grant.is_small or len(repr(shape)) > _LONGEST_SHAPE:
            return decision
        self._grants[place] = (role, caller, bounds, decision.grant)
        if len(self._grants) > self._most:
            self._grants.popitem(last=False)
        return decision


def _decide(
    role: Role,
    caller: Caller,
    request: CertificateRequest,
    grant: Grant | None,
    *,
    now: datetime,
    bounds: Bounds,
) -> Decision:
    findings = Findings()
    key: KeyAlgorithm | PublicKey | None
    if grant is None:
        key, key_type = decide_key(role, request, findings)
        key_usage = decide_key_usage(role, key_type, findings)
        if request.csr is not None:
            check_csr_usages(role, request.csr, findings)
        names = decide_names(role, caller, request, bounds.trust_domain, findings)
        bounds.reserved.check(names.common_name, names.sans, findings)
        granted = tuple(findings.warnings)
    else:
        key = role.key_algorithm if request.csr is None else request.csr.public_key
        key = key or request.key_algorithm
    not_before, not_after = decide_validity(
        role,
        request.validity,
        findings,
        now=now,
        default_ttl=bounds.default_ttl,
        max_ttl=bounds.max_ttl,
    )
    findings.raise_if_any(role.name)
    assert key is not None  # noqa: S101 -- decide_key notes why it is None, and that was raised
    if grant is None:
        grant = _grant(role, names, key_usage, granted)
        return Decision(grant, key, not_before, not_after, tuple(findings.warnings))
    warnings = (*grant.warnings, *findings.warnings) if findings.warnings else grant.warnings
    return Decision(grant, key, not_before, not_after, warnings)


def _grant(
    role: Role, names: GrantedNames, key_usage: x509.KeyUsage | None, warnings: tuple[str, ...]
) -> Grant:
    return Grant(
        role=role.name,
        subject=_subject(role, names),
        sans=names.sans,
        spiffe_id=names.spiffe_id,
        key_usage=key_usage,
        ext_key_usages=role.ext_key_usages,
        policies=role.policies,
        # An X509-SVID says CA:FALSE (X509-SVID section 4.1).
        basic_constraints=role.basic_constraints_valid_for_non_ca or names.spiffe_id is not None,
        issuer_ref=role.issuer,
        signature_bits=role.signature_bits,
        use_pss=role.use_pss,
        is_recorded=not role.no_store,
        warnings=warnings,
    )


def _subject(role: Role, names: GrantedNames) -> x509.Name:
    if not (names.common_name or names.serial_number or names.user_ids):
        return role.bare_subject
    return build_subject(
        role.subject_attributes, names.common_name, names.serial_number, names.user_ids
    )
