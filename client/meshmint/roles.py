"""Role documents, as they stand in YAML files, and role messages.

Takes the spellings that Vault takes: durations as text or seconds, lists as
text with commas, booleans as text. Whether the role makes sense is for the
server to say; here only what cannot be sent is refused, all of it at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration

from meshmint.errors import InvalidArgument, Violation
from meshmint.v1 import role_pb2 as pb

__all__ = ["RoleDocument", "duration_from_text", "role_document", "role_message"]

RoleDocument = Mapping[str, Any]
"""A role by the field names of meshmint.v1.Role."""

_FIELDS: dict[str, FieldDescriptor] = {field.name: field for field in pb.Role.DESCRIPTOR.fields}
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhd])")
_TEXTS = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False}


def duration_from_text(text: str) -> timedelta:
    """Reads a duration such as ``72h``, ``1h30m``, ``7d`` or ``3600`` (seconds).

    Raises:
        ValueError: The text is anything else, or too long a time.
    """
    stripped = text.strip()
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        return _span(float(stripped))
    if not re.fullmatch(rf"(?:{_SPAN.pattern})+", stripped):
        raise ValueError(f"{text!r} is not a duration: write it like 90s, 15m, 72h, 1h30m or 7d")
    return _span(sum(float(number) * _UNITS[unit] for number, unit in _SPAN.findall(stripped)))


def role_message(document: RoleDocument) -> pb.Role:
    """Makes the message of a role document.

    Raises:
        InvalidArgument: Unknown fields or values of the wrong kind, with a
            violation each.
    """
    role = pb.Role()
    violations: list[Violation] = []
    for name, value in document.items():
        field = _FIELDS.get(name)
        if field is None:
            violations.append(Violation(f"role.{name}", "a role has no such field"))
            continue
        if value is None:
            continue
        try:
            json_format.ParseDict({name: _json(field, value)}, role)
        except (ValueError, TypeError, json_format.ParseError) as error:
            violations.append(Violation(f"role.{name}", str(error)))
    if violations:
        raise InvalidArgument(
            f"the role {document.get('name', '')!r} cannot be read", violations=violations
        )
    return role


def role_document(role: pb.Role) -> dict[str, Any]:
    """Makes a document of a message, with what is set and no more."""
    document: dict[str, Any] = json_format.MessageToDict(role, preserving_proto_field_name=True)
    if role.HasField("key_usage"):
        document["key_usage"] = list(role.key_usage.usages)
    return document


def _json(field: FieldDescriptor, value: Any) -> Any:
    """The value in the JSON form of protobuf."""
    kind = field.message_type.full_name if field.message_type else ""
    if kind == Duration.DESCRIPTOR.full_name:
        return _duration_json(value)
    if kind == pb.KeyUsageList.DESCRIPTOR.full_name:
        return value if isinstance(value, Mapping) else {"usages": _list(value)}
    if kind == pb.PolicyIdentifier.DESCRIPTOR.full_name:
        return [{"oid": item} if isinstance(item, str) else item for item in _list(value)]
    if kind == pb.JwtSvidRules.DESCRIPTOR.full_name:
        return _jwt_svid_json(value)
    if kind:
        return value
    if field.is_repeated:
        return [str(item) for item in _list(value)]
    if field.type == FieldDescriptor.TYPE_BOOL and isinstance(value, str | int):
        text = str(value).lower()
        if text not in _TEXTS:
            raise ValueError(f"{value!r} is neither true nor false")
        return _TEXTS[text]
    if field.type == FieldDescriptor.TYPE_STRING and isinstance(value, datetime):
        # YAML reads an RFC 3339 time as one.
        if value.tzinfo is None:
            raise ValueError("the time has no zone: write it like 2030-01-31T00:00:00Z")
        return value.isoformat()
    return value


def _jwt_svid_json(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("it is not a mapping of fields to values")
    fields = pb.JwtSvidRules.DESCRIPTOR.fields_by_name
    unknown = [str(name) for name in value if name not in fields]
    if unknown:
        raise ValueError(f"it has no such field: {', '.join(unknown)}")
    return {name: _json(fields[name], item) for name, item in value.items() if item is not None}


def _duration_json(value: Any) -> str:
    if isinstance(value, timedelta):
        span = value
    elif isinstance(value, str):
        span = duration_from_text(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        span = _span(value)
    else:
        raise ValueError(f"{value!r} is not a duration")
    message = Duration()
    message.FromTimedelta(span)
    return message.ToJsonString()


def _span(seconds: float) -> timedelta:
    try:
        return timedelta(seconds=seconds)
    except OverflowError as error:
        raise ValueError("the duration is too long") from error


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError(f"{value!r} is not a list")
