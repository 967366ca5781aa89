"""Which role a call is about."""

from __future__ import annotations

from collections.abc import Mapping

from meshmint_server.errors import RoleAmbiguous, RoleDenied, Violation
from meshmint_server.policy.caller import Caller
from meshmint_server.policy.role import Role

__all__ = ["choose_jwt_svid_role", "choose_role", "still_chosen"]


def choose_role(roles: Mapping[str, Role], caller: Caller, name: str) -> Role:
    """Picks the role that was named or, if none was, the only one that fits.

    A role that does not exist and one that is not for the caller get the same
    answer, so that nobody can find out names by asking.

    Args:
        roles: Every role by name.
        caller: Who is calling.
        name: The role asked for; may be empty.

    Raises:
        RoleDenied: There is no such role for this caller, or none at all.
        RoleAmbiguous: None was named, and several fit.
    """
    if name:
        role = roles.get(name)
        if role is None or not role.is_for(caller):
            raise RoleDenied(
                "There is no such role, or it is not for this caller. Check the role's name and "
                "its callers.",
                violations=[Violation("role", "unknown, or not for this caller")],
            )
        return role
    fitting = [role for role in roles.values() if role.is_for(caller)]
    if not fitting:
        raise RoleDenied("No role is for this caller. Ask an operator for one.")
    return _only(fitting)


def choose_jwt_svid_role(roles: Mapping[str, Role], caller: Caller, name: str) -> Role:
    """As choose_role; where none was named, among the roles that grant JWT-SVIDs.

    Raises:
        RoleDenied: There is no such role for this caller, or none at all.
        RoleAmbiguous: None was named, and several fit.
    """
    if name:
        return choose_role(roles, caller, name)
    fitting = [role for role in roles.values() if role.jwt_svid and role.is_for(caller)]
    if not fitting:
        raise RoleDenied(
            "No role grants this caller JWT-SVIDs. Ask an operator for one with 'jwt_svid'."
        )
    return _only(fitting)


def still_chosen(roles: Mapping[str, Role], caller: Caller, role: Role) -> Role:
    """The role as it is now, for a call that has waited since it was chosen.

    Raises:
        RoleDenied: It is gone, or not for this caller any more.
    """
    return role if roles.get(role.name) is role else choose_role(roles, caller, role.name)


def _only(fitting: list[Role]) -> Role:
    if len(fitting) > 1:
        names = sorted(role.name for role in fitting)
        shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
        raise RoleAmbiguous(
            f"{len(names)} roles are for this caller; name one of them: {shown}.",
            violations=[Violation("role", f"name one of: {shown}")],
        )
    return fitting[0]
