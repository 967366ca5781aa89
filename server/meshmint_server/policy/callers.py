"""Which callers a role, or the configuration, is about.

A matcher only ever narrows: what it names must be there and must fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from meshmint_server.policy.caller import Attribute, Caller
from meshmint_server.policy.globs import Glob
from meshmint_server.policy.names import MalformedName
from meshmint_server.policy.uris import SpiffePattern, UriPattern, parse_pattern

__all__ = ["CallerMatcher"]

_NAMESPACE = "kubernetes.namespace"
_SERVICE_ACCOUNT = "kubernetes.service_account"


def _check_spiffe_pattern(text: str) -> str:
    if text == "*":
        return text
    if not isinstance(parse_pattern(text), SpiffePattern):
        raise MalformedName("a SPIFFE pattern starts with 'spiffe://'")
    return text


def _refuse_empty(text: str) -> str:
    # What was meant to narrow, and came out empty in somebody's template, must not widen.
    if not text:
        raise ValueError('an empty text narrows nothing: leave the field out, or write "*"')
    return text


_Text = Annotated[str, AfterValidator(_refuse_empty)]


class CallerMatcher(BaseModel):
    """Matches callers: every field that is set must fit.

    Attributes:
        authenticator: Glob for the authenticator's configured name.
        subject: Glob for the caller's subject.
        namespace: Glob for the Kubernetes namespace.
        service_account: Glob for the Kubernetes service account's name.
        spiffe_id: Pattern for the caller's own SPIFFE ID, as in
            allowed_uri_sans; "*" alone: any, but it has one.
        attributes: Globs for attributes by name; of several values one must fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    authenticator: _Text = ""
    subject: _Text = ""
    namespace: _Text = ""
    service_account: _Text = ""
    spiffe_id: Annotated[_Text, AfterValidator(_check_spiffe_pattern)] = ""
    attributes: Mapping[str, str] = Field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Whether it matches every authenticated caller."""
        return self == CallerMatcher()

    def may_come_from(self, authenticators: Iterable[str]) -> bool:
        """Whether callers of one of these authenticators may fit."""
        return not self._authenticator or any(map(self._authenticator.matches, authenticators))

    def matches(self, caller: Caller) -> bool:
        """Tells whether every field that is set fits the caller."""
        if self._authenticator and not self._authenticator.matches(caller.authenticator):
            return False
        if self._subject and not self._subject.matches(caller.subject):
            return False
        if self.spiffe_id and not self._fits_spiffe_id(caller):
            return False
        return all(_has(caller.attributes.get(name), glob) for name, glob in self._attributes)

    def _fits_spiffe_id(self, caller: Caller) -> bool:
        own = caller.spiffe_id
        if own is None:
            return False
        return self._spiffe_pattern is None or self._spiffe_pattern.allows(own, own.trust_domain)

    @cached_property
    def _authenticator(self) -> Glob | None:
        return Glob(self.authenticator) if self.authenticator else None

    @cached_property
    def _subject(self) -> Glob | None:
        return Glob(self.subject) if self.subject else None

    @cached_property
    def _spiffe_pattern(self) -> UriPattern | None:
        return None if self.spiffe_id == "*" else parse_pattern(self.spiffe_id)

    @cached_property
    def _attributes(self) -> tuple[tuple[str, Glob], ...]:
        named = ((_NAMESPACE, self.namespace), (_SERVICE_ACCOUNT, self.service_account))
        wanted = [(name, Glob(text)) for name, text in named if text]
        # Here an empty text was written on purpose: the attribute must be empty.
        wanted += [(name, Glob(text)) for name, text in self.attributes.items()]
        return tuple(wanted)


def _has(value: Attribute | None, glob: Glob) -> bool:
    if value is None:
        return False
    if isinstance(value, str):
        return glob.matches(value)
    return any(glob.matches(one) for one in value)
