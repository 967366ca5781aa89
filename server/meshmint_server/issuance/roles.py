"""The roles as every worker sees them: a snapshot that follows the store."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

import structlog

from meshmint_server.errors import InvalidRole, StoreUnavailable
from meshmint_server.policy import Role
from meshmint_server.store import RoleRow, Store

__all__ = ["RoleBook", "parse_stored_role"]

log = structlog.get_logger(__name__)


class RoleBook:
    """Roles by name, read from the store whenever their revision changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revision = -1
        self._roles: Mapping[str, Role] = MappingProxyType({})
        self._refreshing = asyncio.Lock()

    @property
    def roles(self) -> Mapping[str, Role]:
        """The present snapshot."""
        return self._roles

    async def refresh(self) -> None:
        """Reads the roles again if they have changed.

        A stored role that this version cannot read is left out, and said: one
        bad row must not take the others with it.

        Raises:
            StoreUnavailable: The store does not answer; the snapshot stays.
        """
        if await self._store.roles_revision() == self._revision:
            return
        async with self._refreshing:
            revision, rows = await self._store.load_roles()
            self._roles = MappingProxyType(dict(filter(None, map(parse_stored_role, rows))))
            self._revision = revision

    async def follow(self, interval: float) -> None:
        """Refreshes for ever, every ``interval`` seconds."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                log.warning("roles could not be refreshed", reason=error.reason)


def parse_stored_role(row: RoleRow) -> tuple[str, Role] | None:
    """The role with its name; None, and said in the log, if it cannot be read."""
    try:
        return row.name, Role.from_document(row.document)
    except InvalidRole as error:
        log.error(
            "stored role cannot be read and grants nothing; put it again",
            role=row.name,
            violations=[f"{v.field}: {v.description}" for v in error.violations],
        )
        return None
