"""The shape of meshmint.v1 as text: what clients compiled into themselves.

Run as a program it prints the shape; that is how the golden file is renewed,
on purpose and in the change that means to change the API.
"""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, FileDescriptor
from meshmint.v1 import admin_service_pb2, certificate_service_pb2, role_pb2

FILES: tuple[FileDescriptor, ...] = (
    admin_service_pb2.DESCRIPTOR,
    certificate_service_pb2.DESCRIPTOR,
    role_pb2.DESCRIPTOR,
)

_SCALARS = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_FIXED64: "fixed64",
    FieldDescriptor.TYPE_FIXED32: "fixed32",
    FieldDescriptor.TYPE_BOOL: "bool",
    FieldDescriptor.TYPE_STRING: "string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_SFIXED32: "sfixed32",
    FieldDescriptor.TYPE_SFIXED64: "sfixed64",
    FieldDescriptor.TYPE_SINT32: "sint32",
    FieldDescriptor.TYPE_SINT64: "sint64",
}


def shape() -> str:
    """Every message, field, enum value and method, one a line, in a stable order."""
    lines: list[str] = []
    for file in FILES:
        for message in file.message_types_by_name.values():
            lines += _message(message)
        for enum in file.enum_types_by_name.values():
            lines += _enum(enum)
        for service in file.services_by_name.values():
            for method in service.methods:
                asked = "stream " * method.client_streaming + method.input_type.full_name
                answered = "stream " * method.server_streaming + method.output_type.full_name
                lines.append(f"rpc {service.full_name}.{method.name}({asked}) -> {answered}")
    return "\n".join(sorted(lines)) + "\n"


def _message(message: Descriptor) -> Iterator[str]:
    yield f"message {message.full_name}"
    for field in message.fields:
        oneof = field.containing_oneof
        # A proto3 "optional" is a oneof of its own, with a made-up name.
        synthetic = oneof is not None and oneof.name == f"_{field.name}"
        label = "repeated " * field.is_repeated + "optional " * synthetic
        where = f" in oneof {oneof.name}" if oneof is not None and not synthetic else ""
        yield (
            f"field {message.full_name}.{field.name} = {field.number:02d} "
            f"{label}{_type(field)}{where} json {field.json_name}"
        )
    for nested in message.nested_types:
        yield from _message(nested)
    for enum in message.enum_types:
        yield from _enum(enum)


def _enum(enum: EnumDescriptor) -> Iterator[str]:
    yield f"enum {enum.full_name}"
    for value in enum.values:
        yield f"value {enum.full_name}.{value.name} = {value.number}"


def _type(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return str(field.message_type.full_name)
    if field.enum_type is not None:
        return str(field.enum_type.full_name)
    return _SCALARS[field.type]


if __name__ == "__main__":
    print(shape(), end="")
