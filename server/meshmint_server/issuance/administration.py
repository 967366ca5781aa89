"""What operators may do: roles, issuers and records, behind one check of who asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from meshmint_server.audit import AuditLog, Origin
from meshmint_server.errors import InvalidRole, MeshmintError, NotFound
from meshmint_server.issuance.administrators import AdminGate, Administrators
from meshmint_server.issuance.roles import RoleBook, parse_stored_role
from meshmint_server.policy import Caller, Role
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import (
    IssuerRow,
    Page,
    RecordFilter,
    RecordRow,
    RevocationRow,
    RoleRow,
    Store,
)

__all__ = ["Administration", "KnownCertificate", "PutRole", "RoleChange", "put_role"]


class RoleChange(Enum):
    """What putting a role did, or would do."""

    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class PutRole:
    """Outcome of putting a role."""

    role: Role
    before: Role | None
    change: RoleChange
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KnownCertificate:
    """A certificate on record, and its revocation if it is revoked."""

    record: RecordRow
    revocation: RevocationRow | None


async def put_role(
    store: Store, role: Role, *, trust_domain: TrustDomain, validate_only: bool
) -> PutRole:
    """Creates a role or replaces it whole, if it differs. Idempotent."""
    row = await store.get_role(role.name)
    before = None if row is None else _readable(row)
    if row is None:
        change = RoleChange.CREATED
    elif row.document == role.document():
        change = RoleChange.UNCHANGED
    else:
        change = RoleChange.UPDATED
    if change is not RoleChange.UNCHANGED and not validate_only:
        await store.put_role(RoleRow(role.name, role.document()))
    return PutRole(role, before, change, role.warnings(trust_domain))


def _readable(row: RoleRow) -> Role | None:
    """The stored role; None if this version cannot read it, which must not stop its mending."""
    try:
        return Role.from_document(row.document)
    except InvalidRole:
        return None


class Administration:
    """The operators' side. Every method checks the caller before anything else.

    Each raises PermissionDenied for a caller that the configuration does not
    name under ``admins``.
    """

    def __init__(
        self,
        *,
        admins: Administrators,
        store: Store,
        roles: RoleBook,
        trust_domain: TrustDomain,
        audit: AuditLog,
    ) -> None:
        self._gate = AdminGate(admins, audit)
        self._store = store
        self._roles = roles
        self._trust_domain = trust_domain

    async def put_role(
        self,
        caller: Caller,
        origin: Origin,
        read: Callable[[], dict[str, object]],
        *,
        validate_only: bool,
    ) -> PutRole:
        """Creates or replaces a role.

        Args:
            caller: Who asks.
            origin: Where the request came from.
            read: Reads the role's document; raises InvalidRequest. Called only for an
                administrator: nobody else's large document is worth the work.
            validate_only: Says what would happen, and changes nothing.

        Raises:
            InvalidRole: It can never work; carries every violation.
        """
        self._gate.require_admin(caller, origin)
        try:
            role = Role.from_document(read())
        except MeshmintError as error:
            self._gate.refused(caller, origin, error)
            raise
        outcome = await put_role(
            self._store, role, trust_domain=self._trust_domain, validate_only=validate_only
        )
        if outcome.change is not RoleChange.UNCHANGED and not validate_only:
            self._gate.changed(caller, origin, f"role {role.name} {outcome.change.value}")
            await self._roles.refresh()
        return outcome

    async def get_role(self, caller: Caller, origin: Origin, name: str) -> Role:
        """One role, as it is stored."""
        self._gate.require_admin(caller, origin)
        row = await self._store.get_role(name)
        if row is None:
            raise NotFound(f"There is no role {name!r}. ListRoles lists them.")
        return Role.from_document(row.document)

    async def list_roles(
        self, caller: Caller, origin: Origin, page_size: int, page_token: str
    ) -> Page[Role]:
        """A page of roles by name."""
        self._gate.require_admin(caller, origin)
        page = await self._store.list_roles(page_size, page_token)
        # One that this version cannot read must not hide the others; RoleBook says which.
        roles = [parsed[1] for parsed in map(parse_stored_role, page.items) if parsed is not None]
        return Page(tuple(roles), page.next_page_token)

    async def delete_role(
        self, caller: Caller, origin: Origin, name: str, *, allow_missing: bool
    ) -> None:
        """Deletes a role."""
        self._gate.require_admin(caller, origin)
        if await self._store.delete_role(name):
            self._gate.changed(caller, origin, f"role {name} deleted")
            await self._roles.refresh()
        elif not allow_missing:
            raise NotFound(f"There is no role {name!r}. ListRoles lists them.")

    async def get_issuer(self, caller: Caller, origin: Origin, name: str) -> IssuerRow:
        """One issuer."""
        self._gate.require_admin(caller, origin)
        row = await self._store.get_issuer(name)
        if row is None:
            raise NotFound(f"There is no issuer {name!r}. ListIssuers lists them.")
        return row

    async def list_issuers(
        self, caller: Caller, origin: Origin, page_size: int, page_token: str
    ) -> Page[IssuerRow]:
        """A page of issuers by name."""
        self._gate.require_admin(caller, origin)
        return await self._store.list_issuers(page_size, page_token)

    async def get_record(
        self, caller: Caller, origin: Origin, serial_number: str
    ) -> KnownCertificate:
        """The record of one certificate."""
        self._gate.require_admin(caller, origin)
        row, revocation = await self._store.look_up(serial_number)
        if row is None:
            raise NotFound(
                "There is no record of that serial number. Certificates of roles with no_store "
                "are not recorded."
            )
        return KnownCertificate(row, revocation)

    async def list_records(
        self,
        caller: Caller,
        origin: Origin,
        read: Callable[[], RecordFilter],
        page_size: int,
        page_token: str,
    ) -> Page[KnownCertificate]:
        """A page of records, newest first. `read` reads the filter, for an administrator alone."""
        self._gate.require_admin(caller, origin)
        page = await self._store.list_records(read(), page_size, page_token)
        revoked = await self._store.revocations_of([row.serial_number for row in page.items])
        items = (KnownCertificate(row, revoked.get(row.serial_number)) for row in page.items)
        return Page(tuple(items), page.next_page_token)
