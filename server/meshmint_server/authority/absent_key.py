"""Stands for a key that could not be opened: refuses to sign, until the next look."""

from __future__ import annotations

from meshmint_server.errors import KeyUnavailable
from meshmint_server.keys import KeyAttributes, PublicKey, SignatureAlgorithm, load_public_key

__all__ = ["AbsentKey"]


class AbsentKey:
    """A signing key that does not answer at present."""

    def __init__(self, uri: str, public_key: bytes) -> None:
        self._uri = uri
        self._public_key = public_key

    @property
    def uri(self) -> str:
        """Where it should be."""
        return self._uri

    @property
    def public_key(self) -> PublicKey:
        """The public half, which is on record."""
        return load_public_key(self._public_key)

    async def sign(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Raises KeyUnavailable."""
        raise _no_answer()

    async def attributes(self) -> KeyAttributes:
        """Raises KeyUnavailable."""
        raise _no_answer()


def _no_answer() -> KeyUnavailable:
    return KeyUnavailable("The signing key does not answer at present. Retry.")
