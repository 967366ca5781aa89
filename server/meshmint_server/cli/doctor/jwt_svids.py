"""JWT-SVIDs: the keys that sign them, and what in the configuration does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from meshmint_server.app import jwt_key_rules
from meshmint_server.authn import JwtSettings
from meshmint_server.authority import JwtKeyRules, JwtKeyStep, decide_keys
from meshmint_server.cli.doctor.finding import Finding, ok, warning
from meshmint_server.cli.doctor.words import moment_words
from meshmint_server.config import Config
from meshmint_server.errors import InvalidRole
from meshmint_server.policy import Role
from meshmint_server.policy.durations import format_duration
from meshmint_server.store import JwtKeyRow, JwtKeyState, RoleRow

__all__ = ["check_jwt_svids"]

_SUBJECT = "jwt_svid"
# What the service does by itself is done within seconds; a token may be away for longer.
_LATE = timedelta(hours=1)


def check_jwt_svids(
    rows: Sequence[JwtKeyRow], roles: Sequence[RoleRow], config: Config, now: datetime
) -> Iterator[Finding]:
    """Whether a key signs, whether its successor is late, and who could have tokens at all."""
    rules = jwt_key_rules(config)
    if config.jwt_svid.enabled:
        yield from _keys(rows, rules, now)
        yield from _hurry(config)
        yield from _own_tokens(config)
        return
    granting = [name for name in map(_name_if_granting, roles) if name is not None]
    if granting:
        yield warning(
            _SUBJECT,
            f"JWT-SVIDs are off, and roles grant them: {', '.join(granting)}.",
            "Set 'jwt_svid.enabled', or take 'jwt_svid' out of these roles.",
        )


def _keys(rows: Sequence[JwtKeyRow], rules: JwtKeyRules, now: datetime) -> Iterator[Finding]:
    active = next((row for row in rows if row.state is JwtKeyState.ACTIVE), None)
    if active is None or active.activated_at is None:
        yield warning(
            _SUBJECT,
            "No key signs JWT-SVIDs.",
            "A running service makes one within seconds; if one runs, its log says why not.",
        )
        return
    found = decide_keys(rows, now, rules)
    if found.step is not JwtKeyStep.NONE and found.due is not None and found.due + _LATE < now:
        yield warning(
            _SUBJECT,
            f"The next step with a key, {found.step.value}, has been due since "
            f"{moment_words(found.due)}.",
            "A running service does it by itself; if one runs, its log says why not.",
        )
    else:
        yield ok(
            _SUBJECT,
            f"The key {active.key_id} signs since {moment_words(active.activated_at)}.",
        )


def _hurry(config: Config) -> Iterator[Finding]:
    hint = config.bundle_endpoint.refresh_hint
    if config.jwt_key_published_for < hint:
        yield warning(
            _SUBJECT,
            "A key is published before it signs for less time than verifiers may keep the keys "
            "that they have: until they look again, they refuse the new one's tokens.",
            "Make 'jwt_svid.publish_for' several times 'bundle_endpoint.refresh_hint', which is "
            f"{format_duration(hint)}, or leave it out.",
        )


def _own_tokens(config: Config) -> Iterator[Finding]:
    for one in config.authenticators:
        if isinstance(one, JwtSettings) and one.issuer == config.jwt_svid.issuer:
            yield warning(
                _SUBJECT,
                f"The authenticator {one.name} takes this service's own JWT-SVIDs: whoever has one "
                "gets the next with it, without end.",
                "If that was not meant: take it out of 'authenticators'.",
            )


def _name_if_granting(row: RoleRow) -> str | None:
    try:
        return row.name if Role.from_document(row.document).jwt_svid is not None else None
    except InvalidRole:
        return None  # said with the roles
