"""What the rest of the server knows of a signing key.

A key is something with a public half that signs bytes, somewhere else and
later. How, and where its private half is, stays inside this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from meshmint_server.errors import KeyUnavailable
from meshmint_server.keys.algorithm import KeyAlgorithmName, PublicKey, SignatureAlgorithm

__all__ = ["KeyAttributes", "KeyFault", "Keys", "SigningKey"]

_FOR_CALLERS: Final = "The signing key does not answer at present. Retry."


class KeyFault(KeyUnavailable):
    """A key or its token does not do its work, and why.

    What an operator asked for (opening, generating) shows ``detail`` as its
    message. What a caller asked for (signing) shows a plain sentence, and keeps
    ``detail`` for the log. Neither ever holds a PIN or a passphrase.

    Attributes:
        detail: What is wrong and what to do, for operators.
        kind: The reason as an operator needs it; callers see KEY_UNAVAILABLE.
    """

    def __init__(
        self,
        detail: str,
        *,
        reason: str | None = None,
        retry_after: float | None = None,
        message: str | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(message or detail, reason=reason, retry_after=retry_after)
        self.detail = detail
        self.kind = kind or self.reason

    def for_callers(self) -> KeyFault:
        """The same fault, told to somebody outside: no internals in the message."""
        return KeyFault(
            self.detail, retry_after=self.retry_after, message=_FOR_CALLERS, kind=self.kind
        )


@dataclass(frozen=True, slots=True)
class KeyAttributes:
    """What is known of how a private key is held. None: the token does not tell.

    Attributes:
        storage: ``pkcs11`` or ``file``.
        token: The token's label, model and serial number; or the file's path.
        is_extractable: Whether the private key can leave the token.
        was_ever_extractable: Whether it ever could (CKA_NEVER_EXTRACTABLE, inverted).
        is_sensitive: Whether its value can never be read in plain text.
        is_local: Whether it was generated inside the token, and not imported.
        is_sign_only: Whether signing is all that it may do.
        other_uses: What else it may do, such as ``decrypt``.
    """

    storage: str
    token: str
    is_extractable: bool | None
    was_ever_extractable: bool | None
    is_sensitive: bool | None
    is_local: bool | None
    is_sign_only: bool
    other_uses: tuple[str, ...] = ()


class SigningKey(Protocol):
    """A key that signs. Safe to use from any event loop of this process."""

    @property
    def uri(self) -> str:
        """Where the key is, as the store keeps it."""

    @property
    def public_key(self) -> PublicKey:
        """The public half, proven to belong to the private one."""

    async def sign(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Sign the data: DER for ECDSA (RFC 3279 section 2.2.3), else the raw signature.

        The result is never empty, and is not verified here.

        Raises:
            KeyUnavailable: The key does not sign at present; a retry may help.
            Overloaded: Too many signatures are waiting.
        """
        ...

    async def attributes(self) -> KeyAttributes:
        """How the private half is held.

        Raises:
            KeyUnavailable: The token does not answer.
        """
        ...


class Keys(Protocol):
    """Opens and makes signing keys: `KeyRing` here, or `RemoteKeyRing` in another process."""

    async def find_token(self) -> str | None:
        """See `KeyRing.find_token`."""
        ...

    async def open(self, uri: str, public_key_spki_der: bytes | None = None) -> SigningKey:
        """See `KeyRing.open`."""
        ...

    async def generate(self, label: str, algorithm: KeyAlgorithmName | str) -> SigningKey:
        """See `KeyRing.generate`."""
        ...

    def place_of(self, label: str) -> str:
        """See `KeyRing.place_of`."""
        ...

    async def find_or_generate(self, place: str, algorithm: KeyAlgorithmName | str) -> SigningKey:
        """See `KeyRing.find_or_generate`."""
        ...

    async def close(self) -> None:
        """See `KeyRing.close`."""
        ...
