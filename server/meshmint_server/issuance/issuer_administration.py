"""What operators may do with issuers, behind the same check of who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from meshmint_server.audit import AuditLog, Origin
from meshmint_server.authority import IssuerBook, Rotation, Succession
from meshmint_server.errors import MeshmintError
from meshmint_server.issuance.administrators import AdminGate, Administrators
from meshmint_server.policy import Caller
from meshmint_server.store import IssuerRow

__all__ = ["IssuerAdministration"]

T = TypeVar("T")


class IssuerAdministration:
    """The rotation of issuers. Every method checks the caller before anything else.

    Each raises PermissionDenied for a caller that the configuration does not
    name under ``admins``; what was refused or changed stands in the audit log.
    """

    def __init__(
        self,
        *,
        admins: Administrators,
        succession: Succession,
        issuers: IssuerBook,
        audit: AuditLog,
    ) -> None:
        self._gate = AdminGate(admins, audit)
        self._succession = succession
        self._issuers = issuers

    async def rotation(self, caller: Caller, origin: Origin) -> Rotation:
        """How far the rotation is."""
        self._gate.require_admin(caller, origin)
        return await self._succession.rotation()

    async def prepare(
        self,
        caller: Caller,
        origin: Origin,
        *,
        name: str | None,
        algorithm: str | None,
        common_name: str | None,
    ) -> tuple[IssuerRow, str]:
        """Makes an issuer that waits for its certificate, and a CSR; see `Succession.prepare`."""
        row, csr = await self._change(
            caller,
            origin,
            lambda: self._succession.prepare(name, algorithm=algorithm, common_name=common_name),
        )
        self._gate.changed(caller, origin, f"issuer {row.name} prepared")
        return row, csr

    async def import_(
        self, caller: Caller, origin: Origin, *, name: str | None, certificates: bytes
    ) -> IssuerRow:
        """Takes an issuer's certificate; it is next, or active if no other is."""
        row = await self._change(
            caller, origin, lambda: self._succession.import_([certificates], name=name)
        )
        self._gate.changed(caller, origin, f"issuer {row.name} imported as {row.state.value}")
        return row

    async def activate(
        self, caller: Caller, origin: Origin, *, name: str | None, at_once: bool
    ) -> IssuerRow:
        """Has an issuer sign; see `Succession.activate`."""
        row = await self._change(
            caller, origin, lambda: self._succession.activate(name, at_once=at_once)
        )
        self._gate.changed(caller, origin, f"issuer {row.name} activated{_how(at_once)}")
        return row

    async def remove(
        self, caller: Caller, origin: Origin, *, name: str, at_once: bool
    ) -> IssuerRow:
        """Stops publishing an issuer; see `Succession.remove`."""
        row = await self._change(
            caller, origin, lambda: self._succession.remove(name, at_once=at_once)
        )
        self._gate.changed(caller, origin, f"issuer {row.name} removed{_how(at_once)}")
        return row

    async def _change(
        self, caller: Caller, origin: Origin, change: Callable[[], Awaitable[T]]
    ) -> T:
        self._gate.require_admin(caller, origin)
        try:
            changed = await change()
        except MeshmintError as error:
            self._gate.refused(caller, origin, error)
            raise
        # This worker, at once; the others learn of it like of any change.
        await self._issuers.refresh()
        return changed


def _how(at_once: bool) -> str:
    return " at once" if at_once else ""
