"""What a change of a role changes, line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator

import yaml

from meshmint_server.policy import Role

__all__ = ["role_diff"]


def role_diff(before: Role | None, after: Role) -> Iterator[str]:
    """Lines that start with "-" for what goes and "+" for what comes, as YAML.

    Only what differs from the defaults is part of a role's document, so a field
    that goes back to its default is a "-" line alone.
    """
    old = {} if before is None else _fields(before)
    new = _fields(after)
    for field in dict.fromkeys((*old, *new)):
        if old.get(field) != new.get(field):
            for sign, fields in (("-", old), ("+", new)):
                if field in fields:
                    yield from (f"{sign} {line}" for line in _yaml(field, fields[field]))


def _fields(role: Role) -> dict[str, object]:
    document: dict[str, object] = json.loads(role.document())
    document.pop("name", None)
    return document


def _yaml(field: str, value: object) -> list[str]:
    text: str = yaml.safe_dump({field: value}, sort_keys=False, allow_unicode=True, width=10_000)
    return text.splitlines()
