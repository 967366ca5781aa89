"""Where one certificate goes: the one place that knows kinds of outputs and reactions."""

from __future__ import annotations

from collections.abc import Mapping

from meshmint.agent.config import CertificateSettings
from meshmint.agent.identities import Bundle, Identity

__all__ = ["Targets"]


class Targets:
    """The outputs and reactions of one certificate.

    Args:
        settings: The certificate's.
    """

    def __init__(self, settings: CertificateSettings) -> None:
        self._settings = settings

    def write(self, identity: Identity, bundles: Mapping[str, Bundle]) -> bool:
        """Writes what differs; True if anything did."""
        return False

    async def react(self, identity: Identity) -> None:
        """Does what follows a change."""

    def close(self) -> None:
        """Lets other agents have the outputs."""
