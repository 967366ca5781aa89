"""Templates in roles: ``{{ kubernetes.namespace }}`` and its like.

A placeholder names one fact about the caller. There are no expressions,
filters or defaults, and what was filled in is never read as a template again.
A fact that is missing, has several values, or holds a character that would
change the entry's meaning makes the whole entry grant nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from meshmint_server.policy.caller import Caller
from meshmint_server.spiffe import TrustDomain

__all__ = ["InvalidTemplate", "Template"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:@-]*")
_CALLER_FACTS = ("authenticator", "spiffe_id", "subject", "trust_domain")
_FAMILIES = ("kubernetes.", "claims.")
_VAULT_HINTS = (
    ("service_account_namespace", "{{ kubernetes.namespace }}"),
    ("service_account_name", "{{ kubernetes.service_account }}"),
)


class InvalidTemplate(ValueError):
    """The text is not a template that could ever be rendered; the message says why."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal texts with a placeholder between each two.

    Attributes:
        texts: The literal parts; one more than there are placeholders.
        placeholders: The facts' names, in order.
    """

    texts: tuple[str, ...]
    placeholders: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Reads a template.

        Raises:
            InvalidTemplate: Braces do not pair, or a placeholder is not a fact
                that callers can have.
        """
        texts: list[str] = []
        placeholders: list[str] = []
        rest = text
        while True:
            literal, opening, tail = rest.partition("{{")
            if "}}" in literal:
                raise InvalidTemplate("'}}' has no '{{' before it")
            texts.append(literal)
            if not opening:
                break
            inside, closing, rest = tail.partition("}}")
            if not closing:
                raise InvalidTemplate("'{{' is never closed by '}}'")
            placeholders.append(_placeholder(inside.strip()))
        if any("{" in literal or "}" in literal for literal in texts):
            raise InvalidTemplate("write placeholders as {{ name }}; other braces have no meaning")
        return cls(tuple(texts), tuple(placeholders))

    @property
    def is_bare(self) -> bool:
        """Whether the whole template is one placeholder."""
        return len(self.placeholders) == 1 and self.texts == ("", "")

    def sample(self) -> str:
        """Renders with made-up values, to try out what the template can yield."""
        parts = [self.texts[0]]
        for name, literal in zip(self.placeholders, self.texts[1:], strict=True):
            parts += ["spiffe://x/x" if name == "spiffe_id" else "x", literal]
        return "".join(parts)

    def render(
        self, caller: Caller, trust_domain: TrustDomain, is_allowed: Callable[[str, str], bool]
    ) -> str | None:
        """Renders the template for a caller; None grants nothing.

        Args:
            caller: Whose facts are filled in.
            trust_domain: The service's own, for ``{{ trust_domain }}``.
            is_allowed: Tells, from a placeholder's name and value, whether the
                value may stand there.
        """
        parts = [self.texts[0]]
        for name, literal in zip(self.placeholders, self.texts[1:], strict=True):
            value = _fact(name, caller, trust_domain)
            if value is None or not value or not is_allowed(name, value):
                return None
            parts.append(value)
            parts.append(literal)
        return "".join(parts)


def _placeholder(name: str) -> str:
    if not name:
        raise InvalidTemplate("a placeholder is empty")
    if name.startswith(("identity.", "time.")):
        hint = next((to for key, to in _VAULT_HINTS if name.endswith(key)), None)
        instead = f"write {hint}" if hint else "use kubernetes.… or claims.…"
        raise InvalidTemplate(
            f"'{name}' is of Vault's identity system, which does not exist here; {instead} instead"
        )
    if not _NAME.fullmatch(name):
        raise InvalidTemplate(f"'{name}' is not the name of a fact; expressions are not supported")
    if name in _CALLER_FACTS or any(
        name.startswith(family) and name != family for family in _FAMILIES
    ):
        return name
    raise InvalidTemplate(
        f"'{name}' is not a fact that callers have; known are {', '.join(_CALLER_FACTS)}, "
        "kubernetes.… and claims.…"
    )


def _fact(name: str, caller: Caller, trust_domain: TrustDomain) -> str | None:
    if name == "spiffe_id":
        return str(caller.spiffe_id) if caller.spiffe_id else None
    if name == "subject":
        return caller.subject
    if name == "authenticator":
        return caller.authenticator
    if name == "trust_domain":
        return trust_domain.name
    value = caller.attributes.get(name)
    return value if isinstance(value, str) else None
