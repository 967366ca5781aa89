"""Which URIs a certificate gets, the SPIFFE ID above all.

At most one SPIFFE ID per certificate, and a certificate that has one is an
X509-SVID in full, whatever the role is for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from meshmint_server.policy.caller import Caller
from meshmint_server.policy.findings import Findings
from meshmint_server.policy.names import MalformedName
from meshmint_server.policy.role import Role
from meshmint_server.policy.uris import Uri, UriPattern, parse_pattern
from meshmint_server.spiffe import SpiffeId, TrustDomain

__all__ = ["grant_uris"]

# What a caller's fact may hold inside a URI pattern: it must stay one segment.
_VALUE = re.compile(r"[A-Za-z0-9._~-]+")
_VALUE_WITH_GLOB = re.compile(r"[A-Za-z0-9._~*-]+")

Granted = tuple[tuple[SpiffeId | Uri, ...], SpiffeId | None]
_NOTHING: Granted = ((), None)


def grant_uris(
    role: Role,
    caller: Caller,
    asked: Mapping[SpiffeId | Uri, str],
    field: str,
    *,
    trust_domain: TrustDomain,
    findings: Findings,
) -> Granted:
    """Decides the URIs.

    Args:
        role: The role.
        caller: Whose own SPIFFE ID is filled in.
        asked: The URIs asked for, each with its field's path.
        field: Path of the field for URIs as such.
        trust_domain: The service's own.
        findings: Where what is wrong goes.

    Returns:
        The URIs in order, and the SPIFFE ID among them.
    """
    granting = _Granting(role, caller, asked, field, trust_domain, findings)
    if role.spiffe == "own":
        return granting.own()
    if role.spiffe == "matching":
        return granting.matching()
    return granting.by_pattern() if asked else _NOTHING


@dataclass(frozen=True, slots=True)
class _Granting:
    role: Role
    caller: Caller
    asked: Mapping[SpiffeId | Uri, str]
    field: str
    trust_domain: TrustDomain
    findings: Findings

    def own(self) -> Granted:
        """The caller's own SPIFFE ID, asked for or not."""
        own = self.caller.spiffe_id
        for uri, path in self.asked.items():
            if uri != own:
                self.findings.outside(
                    path, f"{uri}: the role grants the caller's own SPIFFE ID and no other URI"
                )
        if own is None:
            self.findings.outside(
                self.field,
                "the caller has no SPIFFE ID of its own; its authenticator has to give it one",
            )
            return _NOTHING
        return self._svid(own, self.field)

    def matching(self) -> Granted:
        """The one SPIFFE ID asked for, or the caller's own, as the patterns allow."""
        if not self.asked:
            own = self.caller.spiffe_id
            if own is None or not self._allows(own):
                self.findings.outside(
                    self.field,
                    "ask for the SPIFFE ID wanted: the role does not allow the caller's own",
                )
                return _NOTHING
            return self._svid(own, self.field)
        if len(self.asked) > 1:
            self.findings.outside(
                self.field, "an X509-SVID has exactly one URI, its SPIFFE ID (X509-SVID section 2)"
            )
        granted = _NOTHING
        for uri, path in self.asked.items():
            if not isinstance(uri, SpiffeId):
                self.findings.outside(path, f"{uri}: the role grants a SPIFFE ID and no other URI")
            elif not self._allows(uri):
                self.findings.outside(path, f"{uri}: the role does not allow this SPIFFE ID")
            else:
                granted = self._svid(uri, path)
        return granted

    def _svid(self, spiffe_id: SpiffeId, field: str) -> Granted:
        """The SPIFFE ID of a role for X509-SVIDs: of the service's trust domain, with a path."""
        if spiffe_id.trust_domain != self.trust_domain:
            self.findings.outside(
                field, f"{spiffe_id}: this service is of the trust domain {self.trust_domain}"
            )
        elif not spiffe_id.segments:
            self._refuse_bare_trust_domain(spiffe_id, field)
        else:
            return (spiffe_id,), spiffe_id
        return _NOTHING

    def by_pattern(self) -> Granted:
        """Every URI asked for, as the patterns allow."""
        granted_id = None
        for uri, path in self.asked.items():
            if not self.role.allowed_uri_sans:
                self.findings.outside(path, f"{uri}: the role allows no URI")
            elif not self._allows(uri):
                self.findings.outside(path, f"{uri}: the role does not allow this URI")
            if isinstance(uri, SpiffeId):
                granted_id = uri
                self._check_svid_rules(uri, path)
        if granted_id is not None and len(self.asked) > 1:
            self.findings.outside(
                self.field,
                "a certificate with a SPIFFE ID has exactly one URI (X509-SVID section 2)",
            )
        return tuple(self.asked), granted_id

    def _check_svid_rules(self, spiffe_id: SpiffeId, field: str) -> None:
        """Whatever carries a SPIFFE ID must be an X509-SVID (X509-SVID sections 4 and 5)."""
        if not spiffe_id.segments:
            self._refuse_bare_trust_domain(spiffe_id, field)
        if not self.role.has_both_tls_usages or "digital_signature" not in self.role.key_usages:
            self.findings.outside(
                field,
                "a certificate with a SPIFFE ID needs DigitalSignature, serverAuth and "
                "clientAuth, which the role lacks",
            )

    def _refuse_bare_trust_domain(self, spiffe_id: SpiffeId, field: str) -> None:
        self.findings.outside(
            field, f"{spiffe_id}: a workload's SPIFFE ID has a path (X509-SVID section 5.2)"
        )

    def _allows(self, uri: SpiffeId | Uri) -> bool:
        own = self.trust_domain
        if any(pattern.allows(uri, own) for pattern in self.role.uri_patterns):
            return True
        return any(pattern.allows(uri, own) for pattern in self._render())

    def _render(self) -> Iterator[UriPattern]:
        """Renders the role's URI templates; what cannot be rendered grants nothing."""
        allowed = _VALUE_WITH_GLOB if self.role.allow_globs_in_identity_templates else _VALUE
        for template in self.role.uri_templates:
            text = template.render(
                self.caller,
                self.trust_domain,
                # A SPIFFE ID is canonical already, and its slashes are meant.
                lambda name, value: name == "spiffe_id" or bool(allowed.fullmatch(value)),
            )
            if text is not None:
                with suppress(MalformedName):
                    yield parse_pattern(text)
