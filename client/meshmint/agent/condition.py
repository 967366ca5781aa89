"""How each certificate fares: what status, health and metrics tell.

It is written by those who do the work, and read by those who tell of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

__all__ = ["Condition", "Conditions"]


@dataclass(slots=True)
class Condition:
    """Of one certificate.

    Attributes:
        name: Its name.
        spiffe_id: The SPIFFE ID, if it has one.
        serial_number: Lower-case hexadecimal; empty while there is no certificate.
        start: Since when it counts.
        end: When it ends.
        renewal: When it will be renewed, or asked for again.
        renewals: How often it was obtained since the start of the agent.
        failures: How many attempts in a row have failed.
        last_error: Why the last attempt failed; empty after one that did not.
        delivered: Whether its outputs are as they should be.
        delivery_error: Why not; empty if they are, or were not tried yet.
    """

    name: str
    spiffe_id: str | None = None
    serial_number: str = ""
    start: datetime | None = None
    end: datetime | None = None
    renewal: datetime | None = None
    renewals: int = 0
    failures: int = 0
    last_error: str = ""
    delivered: bool = False
    delivery_error: str = ""

    def why_not_ready(self, now: datetime) -> str:
        """What is missing; empty if nothing is."""
        if self.end is None:
            return self.last_error or "there is no certificate yet"
        if now >= self.end:
            return f"the certificate has expired: {self.last_error or 'it is being renewed'}"
        if not self.delivered:
            return self.delivery_error or "it is not delivered yet"
        return ""


@dataclass(slots=True)
class Conditions:
    """Of everything, in the order of the configuration.

    Attributes:
        by_name: Of the certificates.
        templates: Of the templates, of which only the delivery counts.
        sockets: Why a socket is not served, by its path; empty text if it is.
        bundle_error: Why the trust bundle is not being watched; empty if it is.
        reaction_errors: Gives what reactions of a certificate or template fail.
        changed: Called after every change.
    """

    by_name: dict[str, Condition] = field(default_factory=dict)
    templates: dict[str, Condition] = field(default_factory=dict)
    sockets: dict[str, str] = field(default_factory=dict)
    bundle_error: str = ""
    reaction_errors: Callable[[], Mapping[str, str]] = dict
    changed: Callable[[], None] = lambda: None

    def arrange(self, names: Sequence[str], templates: Sequence[str] = ()) -> None:
        """Keeps those of that names, and begins new ones."""
        self.by_name = {name: self.by_name.get(name) or Condition(name) for name in names}
        self.templates = {name: self.templates.get(name) or Condition(name) for name in templates}
        self.changed()

    def why_not_ready(self, now: datetime) -> Mapping[str, str]:
        """What is missing; empty if nothing is.

        Reactions do not count: what they tell may itself wait for the agent to be ready.
        """
        if not self.by_name:
            return {"agent": "it is starting"}
        missing = {
            name: why
            for name, condition in self.by_name.items()
            if (why := condition.why_not_ready(now))
        }
        for name, condition in self.templates.items():
            if not condition.delivered:
                missing[name] = condition.delivery_error or "it is not written yet"
        return missing | {path: why for path, why in self.sockets.items() if why}
