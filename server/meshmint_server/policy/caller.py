"""Who is calling, after authentication."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from meshmint_server.spiffe import SpiffeId

__all__ = ["Attribute", "Caller"]

Attribute = str | tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Caller:
    """An authenticated caller.

    Attributes:
        authenticator: Configured name of the authenticator that vouches for it.
        subject: The caller as that authenticator names it, such as
            ``system:serviceaccount:shop:cart`` or a token's ``sub``.
        attributes: Flat facts that roles match and templates use:
            ``kubernetes.namespace``, ``kubernetes.service_account``,
            ``kubernetes.pod``, ``claims.<name>`` (nested claims joined by dots).
        spiffe_id: The caller's own SPIFFE ID, if its authenticator gives one.
        expires_at: When the credential ends, UTC.
    """

    authenticator: str
    subject: str
    attributes: Mapping[str, Attribute]
    spiffe_id: SpiffeId | None
    expires_at: datetime

    def __post_init__(self) -> None:
        object.__setattr__(self, "attributes", MappingProxyType(dict(self.attributes)))
