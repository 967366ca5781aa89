"""Our subsets of other people's protocols are theirs on the wire: names, numbers, types, labels.

Theirs are in packages that register the same symbols, so each is asked in a process of its
own (see `support/proto_shapes.py`).
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from support import proto_shapes

XDS = Path(sys.executable).parents[1] / "xds-protos"
ENVOY = (
    "envoy.config.core.v3.base_pb2",
    "envoy.config.core.v3.extension_pb2",
    "envoy.extensions.transport_sockets.tls.v3.common_pb2",
    "envoy.extensions.transport_sockets.tls.v3.secret_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2",
    "envoy.service.discovery.v3.discovery_pb2",
    "envoy.service.secret.v3.sds_pb2",
)
OURS = Path(__file__).parents[2] / "client" / "meshmint" / "third_party"


@dataclass(frozen=True)
class Pair:
    """Our subset, and what the package that has it whole says of it."""

    ours: list[FileDescriptor]
    theirs: dict[str, Any]

    @property
    def messages(self) -> list[Descriptor]:
        return list(proto_shapes.messages_of(self.ours))


def _pair(modules: Sequence[str], ours: str, theirs: str = "{}", **environment: str) -> Pair:
    files = [importlib.import_module(ours.format(name)).DESCRIPTOR for name in modules]
    given = {
        message.full_name: [
            proto_shapes.filled(message, choice=choice).SerializeToString().hex()
            for choice in range(8)
        ]
        for message in proto_shapes.messages_of(files)
    }
    done = subprocess.run(
        [sys.executable, "-P", proto_shapes.__file__, *(theirs.format(name) for name in modules)],
        input=json.dumps(given),
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Pair(files, json.loads(done.stdout))


@pytest.fixture(scope="module", params=["envoy", "spiffe"])
def pair(request: pytest.FixtureRequest) -> Pair:
    if request.param == "spiffe":
        return _pair(["workload_pb2"], "meshmint.third_party.spiffe.{}", "spiffe._proto.{}")
    assert XDS.is_dir(), f"{XDS} is missing: run 'make setup'"
    return _pair(ENVOY, "meshmint.third_party.{}", PYTHONPATH=str(XDS))


def test_no_file_of_the_subset_of_envoy_is_left_out_of_the_comparison() -> None:
    found = {
        ".".join(path.relative_to(OURS).with_suffix("").parts)
        for path in (OURS / "envoy").rglob("*_pb2.py")
    }

    assert found == set(ENVOY)


def test_every_field_has_their_name_number_type_label_and_oneof(pair: Pair) -> None:
    assert pair.messages
    for message in pair.messages:
        theirs = pair.theirs["messages"][message.full_name]
        for name, shape in proto_shapes.shape_of_message(message).items():
            assert shape == theirs[name], f"{message.full_name}.{name}"


def test_every_method_takes_and_returns_and_streams_as_theirs(pair: Pair) -> None:
    services = list(proto_shapes.services_of(pair.ours))
    assert services
    for service in services:
        theirs = pair.theirs["services"][service.full_name]
        for name, shape in proto_shapes.shape_of_service(service).items():
            assert shape == theirs[name], f"{service.full_name}/{name}"


def test_what_we_write_they_read_to_the_last_field(pair: Pair) -> None:
    for message in pair.messages:
        written = [
            proto_shapes.plain(proto_shapes.filled(message, choice=choice)) for choice in range(8)
        ]
        assert pair.theirs["read"][message.full_name] == written, message.full_name


def test_what_they_write_we_read_in_every_field_that_we_know(pair: Pair) -> None:
    for message in pair.messages:
        kind = message_factory.GetMessageClass(message)
        for serialised, told in pair.theirs["made"][message.full_name]:
            read = kind.FromString(bytes.fromhex(serialised))
            assert proto_shapes.plain(read) == _known(message, told), message.full_name


def _known(message: Descriptor, told: dict[str, Any]) -> dict[str, Any]:
    """What is left of their message once all that we do not know is taken out."""
    known = {}
    for name, value in told.items():
        field = message.fields_by_name.get(name)
        if field is None:
            continue
        inner = field.message_type
        if inner is None:
            known[name] = value
        elif inner.GetOptions().map_entry:
            of = inner.fields_by_name["value"].message_type
            known[name] = (
                value if of is None else {key: _known(of, one) for key, one in value.items()}
            )
        elif field.is_repeated:
            known[name] = [_known(inner, one) for one in value]
        else:
            known[name] = _known(inner, value)
    return known
