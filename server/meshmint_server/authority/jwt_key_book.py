"""The keys that sign JWT-SVIDs as every worker sees them: a snapshot that follows the store.

A worker signs with the one key that the store says is active, and with no other: whoever
makes it so has made sure that verifiers know it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from meshmint_server.authority.absent_key import AbsentKey
from meshmint_server.errors import (
    InvalidRequest,
    KeyUnavailable,
    MeshmintError,
    StoreUnavailable,
)
from meshmint_server.keys import Keys, PublicKey, SigningKey, load_public_key
from meshmint_server.spiffe import JwtKey
from meshmint_server.store import JwtKeyRow, JwtKeyState, Store

__all__ = ["JwtKeyBook", "JwtSigningKey"]

log = structlog.get_logger(__name__)

# As for issuers: a key may have retired meanwhile, and it is published for not much longer
# than the tokens live that it signed until then.
_BELIEVED_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class JwtSigningKey:
    """The key to sign with.

    Attributes:
        key_id: Its ``kid``.
        key: Signs.
        public_key: With which every signature is verified.
    """

    key_id: str
    key: SigningKey
    public_key: PublicKey


class JwtKeyBook:
    """Keys for JWT-SVIDs, read from the store whenever their revision changes.

    Args:
        store: Where they are on record.
        keyring: Opens those that sign, or will.
        on_change: Called when others may see another set of keys.
        monotonic: Seconds that no setting of the clock changes.
    """

    def __init__(
        self,
        store: Store,
        keyring: Keys,
        *,
        on_change: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._on_change = on_change
        self._monotonic = monotonic
        self._confirmed_at = monotonic()
        self._read = -1
        self._revision = -1
        self._published: tuple[JwtKey, ...] = ()
        self._active: JwtSigningKey | None = None
        self._open_keys: dict[tuple[str, bytes], SigningKey] = {}
        self._complaints: frozenset[tuple[str, str]] = frozenset()
        self._refreshing = asyncio.Lock()

    @property
    def revision(self) -> int:
        """That of issuers and keys, as of which the published ones are."""
        return self._revision

    @property
    def published(self) -> tuple[JwtKey, ...]:
        """The keys to verify with, in the order in which they were made."""
        return self._published

    async def refresh(self) -> None:
        """Reads the keys again if they have changed, or if one did not answer.

        Raises:
            StoreUnavailable: The database does not answer; what was known stays.
        """
        async with self._refreshing:
            asked_at = self._monotonic()
            if await self._store.issuers_revision() != self._read:
                await self._load()
            self._confirmed_at = asked_at

    async def _load(self) -> None:
        revision, rows = await self._store.load_jwt_keys()
        complaints: set[tuple[str, str]] = set()
        public_keys: dict[str, PublicKey] = {}
        for row in rows:
            if row.state.is_published:
                try:
                    public_keys[row.key_id] = load_public_key(row.public_key)
                except InvalidRequest:
                    # Nothing that was made here; others must not suffer for it.
                    complaints.add((row.key_id, "JWT_KEY_UNREADABLE"))
        self._publish(
            revision,
            tuple(JwtKey(r.key_id, r.public_key) for r in rows if r.key_id in public_keys),
        )
        # Only now: a token that hangs keeps no verifier from knowing a key.
        opened: dict[tuple[str, bytes], SigningKey] = {}
        active: JwtSigningKey | None = None
        is_impaired = False
        for row in rows:
            # The next one is opened ahead, so that it signs from its first moment on.
            if row.key_id not in public_keys or row.state is JwtKeyState.RETIRED:
                continue
            key, complaint = await self._open(row)
            if complaint is None:
                opened[row.key_uri, row.public_key] = key
            else:
                is_impaired = True
                complaints.add((row.key_id, complaint))
            if row.state is JwtKeyState.ACTIVE:
                active = JwtSigningKey(row.key_id, key, public_keys[row.key_id])
        for key_id, reason in complaints - self._complaints:
            log.warning("authority.jwt_key_impaired", key=key_id, reason=reason)
        self._complaints = frozenset(complaints)
        self._open_keys = opened
        self._active = active
        self._read = -1 if is_impaired else revision

    def _publish(self, revision: int, keys: tuple[JwtKey, ...]) -> None:
        self._published = keys
        if revision != self._revision:
            self._revision = revision
            self._on_change()

    async def _open(self, row: JwtKeyRow) -> tuple[SigningKey, str | None]:
        known = self._open_keys.get((row.key_uri, row.public_key))
        if known is not None:
            return known, None
        try:
            return await self._keyring.open(row.key_uri, row.public_key), None
        except (KeyUnavailable, InvalidRequest) as fault:
            return AbsentKey(row.key_uri, row.public_key), fault.reason

    def signing(self) -> JwtSigningKey:
        """The key to sign with.

        Raises:
            KeyUnavailable: There is none yet.
            StoreUnavailable: Which one that is was not to be learnt for minutes.
        """
        if self._monotonic() - self._confirmed_at > _BELIEVED_SECONDS:
            raise StoreUnavailable(
                "The database has not said for some minutes which key signs JWT-SVIDs. Retry.",
                reason="JWT_KEYS_NOT_CONFIRMED",
            )
        if self._active is None:
            raise KeyUnavailable(
                "The key that signs JWT-SVIDs is not made yet. Retry.",
                reason="JWT_KEY_NOT_READY",
            )
        return self._active

    async def follow(self, interval: float) -> None:
        """Refreshes for ever, every ``interval`` seconds."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.refresh()
            except MeshmintError as error:
                log.warning("keys for JWT-SVIDs could not be refreshed", reason=error.reason)
