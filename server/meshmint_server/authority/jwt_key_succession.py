"""What may be done with the keys that sign JWT-SVIDs: prepare, activate, retire, remove.

The service itself and operators come through here, so that one set of rules holds for
both. A key is made in its token and stays there.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from meshmint_server.authority.jwt_rotation import (
    JwtKeyRules,
    JwtKeys,
    decide_keys,
    known_from,
    needed_until,
)
from meshmint_server.authority.steadiness import agreed_time
from meshmint_server.errors import NotFound, PreconditionFailed, StoreUnavailable
from meshmint_server.keys import KeyAlgorithmName, Keys, public_key_info
from meshmint_server.store import JwtKeyRow, JwtKeyState, Store

__all__ = ["JwtKeySuccession"]


class JwtKeySuccession:
    """The keys of one service.

    Args:
        store: Where they are on record.
        keyring: Where they are made.
        rules: The thresholds.
        clock: The present.
    """

    def __init__(
        self,
        store: Store,
        keyring: Keys,
        rules: JwtKeyRules,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._rules = rules
        self._clock = clock

    async def look(self) -> tuple[int, tuple[JwtKeyRow, ...], JwtKeys]:
        """The revision, every key, and what comes next.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        revision, rows = await self._store.load_jwt_keys()
        return revision, rows, decide_keys(rows, self._clock(), self._rules)

    async def prepare(self) -> JwtKeyRow:
        """Makes a key and publishes it.

        Its place is written down before it is made, so that whoever is interrupted in
        between finds it there: one key in all.

        Raises:
            KeyUnavailable: It could not be made.
            StoreUnavailable: The database does not answer, or somebody else was first.
        """
        async with self._alone():
            revision, rows = await self._store.load_jwt_keys()
            if any(row.state is JwtKeyState.NEXT for row in rows):
                raise _changed_meanwhile()
            row = next((one for one in rows if one.state is JwtKeyState.PENDING), None)
            if row is None:
                now = await self._time()
                key_id = f"jwt-{now:%Y%m%d}-{secrets.token_hex(8)}"
                place = self._keyring.place_of(key_id)
                row = JwtKeyRow(key_id, JwtKeyState.PENDING, place, b"", now)
                revision = await self._put(row, revision)
            elif (place := self._keyring.place_of(row.key_id)) != row.key_uri:
                # Keys are made elsewhere since: there it would be waited for in vain.
                row = replace(row, key_uri=place)
                revision = await self._put(row, revision)
            key = await self._keyring.find_or_generate(row.key_uri, KeyAlgorithmName.EC_P256)
            row = replace(
                row,
                state=JwtKeyState.NEXT,
                key_uri=key.uri,
                public_key=public_key_info(key.public_key),
                published_at=await self._time(),
            )
            await self._put(row, revision)
            return row

    async def activate(self, key_id: str, *, at_revision: int, at_once: bool = False) -> JwtKeyRow:
        """Has a key sign from now on; the active one retires, in the same transaction.

        Args:
            key_id: The key; it is the next one.
            at_revision: Does so only if no issuer and no key has changed since.
            at_once: Although not everybody can know it yet.

        Raises:
            NotFound: There is no such key.
            PreconditionFailed: It is not the next one, or not everybody can know it yet.
            KeyUnavailable: It does not sign.
            StoreUnavailable: The database does not answer, or something has just changed.
        """
        rows = await self._rows(at_revision)
        row = _named(rows, key_id)
        now = await self._time()
        if row.state is not JwtKeyState.NEXT:
            raise PreconditionFailed(
                f"The key '{key_id}' is {row.state.value}. Only the next one can become active.",
                reason="JWT_KEY_NOT_NEXT",
            )
        known = known_from(row, rows, self._rules)
        if now < known and not at_once:
            raise PreconditionFailed(
                f"The key '{key_id}' has to be published until {known:%Y-%m-%dT%H:%M:%SZ} before "
                "it signs: whoever does not know it yet would refuse its tokens.",
                reason="JWT_KEY_NOT_KNOWN_YET",
            )
        # It is handed out only after it has signed: one that cannot must not take over.
        await self._keyring.open(row.key_uri, row.public_key)
        row = replace(row, state=JwtKeyState.ACTIVE, activated_at=now)
        await self._put(row, at_revision)
        return row

    async def retire(self, key_id: str, *, at_revision: int) -> JwtKeyRow:
        """Has a key sign no more, with none in its place. It stays published.

        Raises:
            NotFound: There is no such key.
            StoreUnavailable: The database does not answer, or something has just changed.
        """
        row = _named(await self._rows(at_revision), key_id)
        if row.state not in (JwtKeyState.ACTIVE, JwtKeyState.NEXT):
            return row
        row = replace(row, state=JwtKeyState.RETIRED, retired_at=await self._time())
        await self._put(row, at_revision)
        return row

    async def remove(self, key_id: str, *, at_revision: int, at_once: bool = False) -> JwtKeyRow:
        """Stops publishing a key that does not sign: nobody is to believe its tokens.

        One that was to sign next never did, so it may go at any time: its token may be lost,
        and nothing would ever follow it.

        Args:
            key_id: The key.
            at_revision: Does so only if no issuer and no key has changed since.
            at_once: Even though tokens of it can live.

        Raises:
            NotFound: There is no such key.
            PreconditionFailed: It signs, or tokens of it can live.
            StoreUnavailable: The database does not answer, or something has just changed.
        """
        row = _named(await self._rows(at_revision), key_id)
        if row.state is JwtKeyState.GONE:
            return row
        if row.state is JwtKeyState.ACTIVE:
            raise PreconditionFailed(
                f"The key '{key_id}' is active. Have another one sign first.",
                reason="JWT_KEY_IN_USE",
            )
        until = needed_until(row, self._rules)
        may_be_needed = row.state is JwtKeyState.RETIRED and not at_once
        if may_be_needed and (until is None or await self._time() < until):
            raise PreconditionFailed(
                f"Tokens that the key '{key_id}' signed may live"
                f"{'' if until is None else f' until {until:%Y-%m-%dT%H:%M:%SZ}'}. "
                "It goes by itself afterwards.",
                reason="JWT_KEY_IN_USE",
            )
        row = replace(row, state=JwtKeyState.GONE)
        await self._put(row, at_revision)
        return row

    async def _time(self) -> datetime:
        return await agreed_time(self._store, self._clock())

    async def _rows(self, at_revision: int) -> tuple[JwtKeyRow, ...]:
        revision, rows = await self._store.load_jwt_keys()
        if revision != at_revision:
            raise _changed_meanwhile()
        return rows

    async def _put(self, row: JwtKeyRow, revision: int) -> int:
        if not await self._store.put_jwt_key(row, at_revision=revision):
            raise _changed_meanwhile()
        return revision + 1

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Nobody else makes a key meanwhile: two who look for one and find none would make two."""
        leadership = self._store.leadership("jwt-key")
        try:
            if not await leadership.hold():
                raise _changed_meanwhile()
            yield
        finally:
            await leadership.release()


def _named(rows: Sequence[JwtKeyRow], key_id: str) -> JwtKeyRow:
    for row in rows:
        if row.key_id == key_id:
            return row
    raise NotFound(
        f"There is no key {key_id!r} for JWT-SVIDs. 'meshmintd jwt-keys show' lists them."
    )


def _changed_meanwhile() -> StoreUnavailable:
    return StoreUnavailable(
        "Issuers or keys have been changed by somebody else meanwhile. Try again.",
        reason="ISSUERS_CHANGED",
    )
