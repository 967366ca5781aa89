"""Roles and administrators: whether they can be read, and whether anybody can be one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.config import Config
from meshmint_server.errors import InvalidRole
from meshmint_server.policy import CallerMatcher, Role
from meshmint_server.store import IssuerRow, IssuerState, RoleRow

__all__ = ["check_admins", "check_roles"]

_EDIT = "Correct the role's file, and: meshmintd apply -f FILE"


def check_roles(
    rows: tuple[RoleRow, ...], config: Config, issuers: tuple[IssuerRow, ...] | None
) -> Iterator[Finding]:
    """Every role in the store."""
    if not rows:
        yield warning(
            "roles",
            "There is no role: nobody can be issued a certificate.",
            "Write one and put it with 'meshmintd apply'; docs/reference/roles.md has every field.",
        )
    for row in rows:
        subject = f"role {row.name}"
        try:
            role = Role.from_document(row.document)
        except InvalidRole as fault:
            reasons = "; ".join(f"{one.field}: {one.description}" for one in fault.violations)
            yield error(
                subject,
                f"It cannot be read, and grants nothing: {reasons or fault.message}",
                "Put it again with 'meshmintd apply -f FILE', or delete it.",
            )
            continue
        faults = [*_role(subject, role, config, issuers)]
        yield from faults
        if not faults:
            yield ok(subject, "It can be read, and callers can use it.")


def _role(
    subject: str, role: Role, config: Config, issuers: tuple[IssuerRow, ...] | None
) -> Iterator[Finding]:
    for text in role.warnings(config.trust_domain):
        yield warning(
            subject, f"Doubtful: {text}.", f"If that was not meant: {_EDIT[0].lower()}{_EDIT[1:]}"
        )
    unknown = _unknown(role.callers, config)
    if unknown and len(unknown) == len(role.callers):
        yield warning(
            subject,
            f"Nobody can use it: its callers are of {_list(unknown)}, and no such authenticator "
            "is configured.",
            f"Configure the authenticator. Or: {_EDIT}",
        )
    elif unknown:
        yield warning(
            subject,
            f"Some of its callers are of {_list(unknown)}, and no such authenticator is "
            "configured.",
            f"Configure the authenticator. Or: {_EDIT}",
        )
    signing = {row.name for row in issuers or () if row.state is IssuerState.ACTIVE}
    if issuers is not None and role.issuer is not None and role.issuer not in signing:
        yield warning(
            subject,
            f"It names the issuer {role.issuer!r}, which does not sign at present.",
            f"Leave issuer_ref out, or name the active issuer. {_EDIT}",
        )


def check_admins(config: Config) -> Iterator[Finding]:
    """The administrators that the configuration names."""
    if not config.admins:
        yield warning(
            "admins",
            "There is no administrator: AdminService refuses everybody, and roles change by "
            "'meshmintd apply -c' only.",
            "Name one in 'admins', unless that is meant.",
        )
        return
    unknown = _unknown(config.admins, config)
    if unknown:
        yield error(
            "admins",
            f"'admins' names {_list(unknown)}, and no such authenticator is configured.",
            "Correct the name, or configure the authenticator.",
        )
    is_open = any(matcher.is_open for matcher in config.admins)
    if is_open:
        yield error(
            "admins",
            "A matcher in 'admins' is empty: every authenticated caller is an administrator.",
            "Say who it is: an authenticator with a namespace and service account, or a subject.",
        )
    if not unknown and not is_open:
        yield ok("admins", "They are of authenticators that are configured.")


def _unknown(matchers: Iterable[CallerMatcher], config: Config) -> list[str]:
    names = [settings.name for settings in config.authenticators]
    return [one.authenticator for one in matchers if not one.may_come_from(names)]


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"the authenticator {name!r}" for name in dict.fromkeys(names))
