"""The template that gives a caller its own SPIFFE ID.

Two callers must never render to one ID by a trick of punctuation, so a
placeholder stays inside its path segment, and a segment has one at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshmint_server.policy.caller import Attribute
from meshmint_server.spiffe import InvalidSpiffeId, SpiffeId, TrustDomain

__all__ = ["KUBERNETES_ALIASES", "IdentityTemplate"]

SCHEME = "spiffe://"
KUBERNETES_ALIASES = {
    "namespace": "kubernetes.namespace",
    "service_account": "kubernetes.service_account",
}

_SEGMENT = re.compile(r"([^{}]*)(?:\{([^{}]+)\}([^{}]*))?")


@dataclass(frozen=True, slots=True)
class _Segment:
    before: str
    attribute: str | None
    after: str


@dataclass(frozen=True, slots=True)
class IdentityTemplate:
    """A parsed template, such as ``spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}``."""

    trust_domain: TrustDomain
    segments: tuple[_Segment, ...]

    @classmethod
    def parse(
        cls,
        template: str,
        trust_domain: TrustDomain,
        aliases: Mapping[str, str],
        *,
        any_domain: bool = False,
    ) -> IdentityTemplate:
        """Parses a template.

        Args:
            template: The text. Placeholders are attribute names in braces.
            trust_domain: The only trust domain that it may name.
            aliases: Short names for attributes.
            any_domain: Takes any trust domain, where ours is not known yet.

        Raises:
            ValueError: It cannot give SPIFFE IDs of this trust domain, or could
                give two callers the same one.
        """
        domain, _, path = template.removeprefix(SCHEME).partition("/")
        if not template.startswith(SCHEME) or not path:
            raise ValueError("a SPIFFE ID template starts with 'spiffe://{trust_domain}/'")
        if domain not in ("{trust_domain}", trust_domain.name) and not any_domain:
            raise ValueError(
                f"the SPIFFE ID template is not in the trust domain {trust_domain}; "
                "write 'spiffe://{trust_domain}/…'"
            )
        segments = []
        for text in path.split("/"):
            match = _SEGMENT.fullmatch(text)
            if match is None:
                raise ValueError(
                    f"in the SPIFFE ID template, '{text}' must be text with at most one "
                    "{attribute}, so that no two callers get the same ID"
                )
            name = match[2]
            if name is not None:
                name = aliases.get(name, name)
                if not name.startswith(("kubernetes.", "claims.")):
                    raise ValueError(
                        f"the SPIFFE ID template names '{match[2]}', which is no attribute; "
                        f"known are claims.<name>, kubernetes.<name> {' '.join(sorted(aliases))}"
                    )
            segments.append(_Segment(match[1], name, match[3] or ""))
        if all(segment.attribute is None for segment in segments):
            raise ValueError("the SPIFFE ID template gives every caller the same ID")
        parsed = cls(trust_domain, tuple(segments))
        try:
            probe = tuple(s.before + ("x" if s.attribute else "") + s.after for s in segments)
            SpiffeId(trust_domain, probe)
        except InvalidSpiffeId as error:
            raise ValueError(f"the SPIFFE ID template gives no SPIFFE ID: {error}") from error
        return parsed

    def render(self, attributes: Mapping[str, Attribute]) -> SpiffeId | None:
        """The caller's SPIFFE ID; None if an attribute is missing or does not fit a segment."""
        segments = []
        for segment in self.segments:
            value: Attribute | None = ""
            if segment.attribute is not None:
                value = attributes.get(segment.attribute)
                if not isinstance(value, str) or not value:
                    return None
            segments.append(f"{segment.before}{value}{segment.after}")
        try:
            return SpiffeId(self.trust_domain, tuple(segments))
        except InvalidSpiffeId:
            return None
