"""Where `meshmintd apply` puts roles: a running service, or the store itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import meshmint

from meshmint_server.app import open_store
from meshmint_server.cli.terminal import Failure
from meshmint_server.config import Config
from meshmint_server.issuance import PutRole, RoleChange, put_role
from meshmint_server.policy import Role
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import Store

__all__ = ["RoleTarget", "service_target", "store_target"]

CALL_SECONDS: Final = 20.0


class RoleTarget(Protocol):
    """Takes roles."""

    async def put(self, role: Role, *, validate_only: bool) -> PutRole:
        """Creates or replaces a role whole, if it differs."""
        ...


@dataclass(frozen=True, slots=True)
class _StoreTarget:
    store: Store
    trust_domain: TrustDomain

    async def put(self, role: Role, *, validate_only: bool) -> PutRole:
        return await put_role(
            self.store, role, trust_domain=self.trust_domain, validate_only=validate_only
        )


@asynccontextmanager
async def store_target(config: Config) -> AsyncIterator[RoleTarget]:
    """The store that a configuration names; every worker sees the change within a second."""
    async with open_store(config) as store:
        yield _StoreTarget(store, config.trust_domain)


@dataclass(frozen=True, slots=True)
class _ServiceTarget:
    client: meshmint.AsyncAdminClient

    async def put(self, role: Role, *, validate_only: bool) -> PutRole:
        before = await self._get(role.name)
        done = await self.client.put_role(json.loads(role.document()), validate_only=validate_only)
        return PutRole(role, before, RoleChange(done.change), done.warnings)

    async def _get(self, name: str) -> Role | None:
        try:
            return Role.from_document(dict(await self.client.get_role(name)))
        except meshmint.NotFound:
            return None


@asynccontextmanager
async def service_target(
    server: str, *, ca_file: Path | None, token_file: Path
) -> AsyncIterator[RoleTarget]:
    """A running service, through its AdminService, over TLS."""
    try:
        async with meshmint.AsyncAdminClient(
            server,
            root_certificates=ca_file,
            token=meshmint.TokenFile(token_file),
            timeout=CALL_SECONDS,
        ) as client:
            yield _ServiceTarget(client)
    except meshmint.MeshmintError as error:
        raise Failure(
            f"the service did not take the roles: {error.message}",
            [f"{violation.field}: {violation.description}" for violation in error.violations],
        ) from error
