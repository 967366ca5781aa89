"""The API only grows: what a client was built against keeps its meaning.

After a change that is meant, renew the golden file in the same commit:

    .venv/bin/python tests/support/api_shape.py > tests/contract/meshmint_v1.golden
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.rpc import status_pb2
from support.api_shape import shape

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("meshmint_v1.golden")
SOURCES = sorted((ROOT / "proto" / "meshmint" / "v1").glob("*.proto"))


def test_messages_fields_numbers_types_and_methods_are_those_of_the_golden_file() -> None:
    found, frozen = shape().splitlines(), GOLDEN.read_text().splitlines()

    gone = sorted(set(frozen) - set(found))
    new = sorted(set(found) - set(frozen))
    assert not gone, f"clients in the field rely on: {gone}; now: {new}"
    assert not new, f"new in the API, not in {GOLDEN.name} yet (see this file's docstring): {new}"


def test_no_two_fields_of_a_message_share_a_number_in_the_golden_file() -> None:
    numbers: set[tuple[str, str]] = set()
    for line in GOLDEN.read_text().splitlines():
        if line.startswith("field "):
            name, _, rest = line.removeprefix("field ").partition(" = ")
            key = (name.rpartition(".")[0], rest.split()[0])
            assert key not in numbers, line
            numbers.add(key)


def test_generated_code_is_what_the_proto_files_generate() -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / "proto" / "generate.sh", "--check", ROOT / "client"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_hand_edited_generated_file_is_noticed(tmp_path: Path) -> None:
    copy = tmp_path / "client"
    shutil.copytree(ROOT / "client" / "meshmint" / "v1", copy / "meshmint" / "v1")
    with (copy / "meshmint" / "v1" / "role_pb2.py").open("a") as file:
        file.write("# touched\n")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / "proto" / "generate.sh", "--check", copy],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "make proto" in done.stderr


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_everything_in_the_api_has_a_comment(source: Path, tmp_path: Path) -> None:
    from grpc_tools import protoc

    out = tmp_path / "set"
    assert not protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'proto'}",
            f"-I{Path(protoc.__file__).parent / '_proto'}",
            f"-I{Path(status_pb2.__file__).parents[2]}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            str(source),
        ]
    )
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    commented = {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }

    silent = [name for path, name in _elements(file) if path not in commented]

    assert not silent


def _elements(
    file: descriptor_pb2.FileDescriptorProto,
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Paths as descriptor.proto numbers them: 4 message, 5 enum, 6 service, 2 member."""
    for index, message in enumerate(file.message_type):
        yield from _message_elements(message, (4, index), message.name)
    for index, enum in enumerate(file.enum_type):
        yield from _enum_elements(enum, (5, index), enum.name)
    for index, service in enumerate(file.service):
        yield (6, index), service.name
        for number, method in enumerate(service.method):
            yield (6, index, 2, number), f"{service.name}.{method.name}"


def _message_elements(
    message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    if message.options.map_entry:
        return
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, 2, index), f"{name}.{field.name}"
    optional = {field.oneof_index for field in message.field if field.proto3_optional}
    for index, oneof in enumerate(message.oneof_decl):
        if index not in optional:
            yield (*path, 8, index), f"{name}.{oneof.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _message_elements(nested, (*path, 3, index), f"{name}.{nested.name}")
    for index, enum in enumerate(message.enum_type):
        yield from _enum_elements(enum, (*path, 4, index), f"{name}.{enum.name}")


def _enum_elements(
    enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...], name: str
) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, 2, index), f"{name}.{value.name}"
