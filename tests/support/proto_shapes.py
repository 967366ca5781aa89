"""What messages and services look like, and messages with every field set.

Also a program, for protocols whose symbols two packages register, so that no one process
can hold both. Of the modules named it prints the shapes, and reads messages that another
made:

    python proto_shapes.py MODULE… < {"full.name": "serialised, hex", …}
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    FileDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import Message

__all__ = ["filled", "messages_of", "plain", "services_of", "shape_of_message", "shape_of_service"]

# Messages may hold themselves.
_DEPTH = 6


def messages_of(files: Iterable[FileDescriptor]) -> Iterator[Descriptor]:
    """All messages, nested ones and those of map entries as well."""
    for file in files:
        waiting = list(file.message_types_by_name.values())
        while waiting:
            message = waiting.pop()
            yield message
            waiting.extend(message.nested_types)


def services_of(files: Iterable[FileDescriptor]) -> Iterator[ServiceDescriptor]:
    """All services."""
    for file in files:
        yield from file.services_by_name.values()


def shape_of_message(message: Descriptor) -> dict[str, list[Any]]:
    """Of each field: number, type, whether it repeats, name in JSON, oneof, type of its values."""
    return {
        field.name: [
            field.number,
            field.type,
            field.is_repeated,
            field.json_name,
            field.containing_oneof.name if field.containing_oneof else None,
            field.message_type.full_name if field.message_type else None,
            field.has_presence,
        ]
        for field in message.fields
    }


def shape_of_service(service: ServiceDescriptor) -> dict[str, list[Any]]:
    """Of each method: what goes in and comes out, and whether it streams."""
    return {
        method.name: [
            method.input_type.full_name,
            method.client_streaming,
            method.output_type.full_name,
            method.server_streaming,
        ]
        for method in service.methods
    }


def filled(descriptor: Descriptor, *, choice: int = 0, depth: int = _DEPTH) -> Message:
    """A message with every field set, each with values of its own.

    Args:
        descriptor: Of the message.
        choice: Which one of each oneof.
        depth: How deep messages in it are filled.
    """
    message: Message = message_factory.GetMessageClass(descriptor)()
    for oneof in descriptor.oneofs:
        chosen = oneof.fields[choice % len(oneof.fields)]
        _set(message, chosen, choice, depth)
    for field in descriptor.fields:
        if field.containing_oneof is None:
            _set(message, field, choice, depth)
    return message


def _set(message: Message, field: FieldDescriptor, choice: int, depth: int) -> None:
    if field.message_type is not None and not depth:
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value = field.message_type.fields_by_name["value"]
        entries = getattr(message, field.name)
        for key in (_value(field.message_type.fields_by_name["key"]),):
            if value.message_type is None:
                entries[key] = _value(value)
            else:
                entries[key].CopyFrom(filled(value.message_type, choice=choice, depth=depth - 1))
    elif field.message_type is not None:
        inner = filled(field.message_type, choice=choice, depth=depth - 1)
        if field.is_repeated:
            getattr(message, field.name).extend([inner, inner])
        else:
            getattr(message, field.name).CopyFrom(inner)
    elif field.is_repeated:
        getattr(message, field.name).extend([_value(field), _value(field)])
    else:
        setattr(message, field.name, _value(field))


def _value(field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        text = f"{field.full_name} ü"
        return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return field.enum_type.values[-1].number
    return field.number + 100


def plain(message: Message) -> dict[str, Any]:
    """All that is set, as JSON can hold it."""
    return {field.name: _plain_field(field, value) for field, value in message.ListFields()}


def _plain_field(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _plain_value(inner, value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_plain_value(field, one) for one in value]
    return _plain_value(field, value)


def _plain_value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    return value.hex() if isinstance(value, bytes) else value


def _main() -> None:
    files = [importlib.import_module(name).DESCRIPTOR for name in sys.argv[1:]]
    given: dict[str, list[str]] = json.load(sys.stdin)
    by_name = {message.full_name: message for message in messages_of(files)}
    answer: dict[str, Any] = {
        "messages": {name: shape_of_message(one) for name, one in by_name.items()},
        "services": {one.full_name: shape_of_service(one) for one in services_of(files)},
        "read": {},
        "made": {},
    }
    for name, serialised in given.items():
        if name not in by_name:
            continue
        kind = message_factory.GetMessageClass(by_name[name])
        answer["read"][name] = [plain(kind.FromString(bytes.fromhex(one))) for one in serialised]
        made = [filled(by_name[name], choice=choice) for choice in range(8)]
        answer["made"][name] = [[one.SerializeToString().hex(), plain(one)] for one in made]
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
