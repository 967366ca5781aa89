"""Reads agent.yaml as a document, and says where in it something is wrong, for people.

Keys that stand twice and aliases are refused. No message quotes a value: somebody may
have put a secret there by mistake.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from meshmint.errors import ConfigurationError

__all__ = ["problems_of", "read_document"]

_MAX_BYTES = 4 << 20
# What pydantic puts into a place to say which kind of output or reaction it took it for.
_KINDS = frozenset(("pem", "der", "pkcs12", "java", "template", "command", "signal", "http"))
_NAME = re.compile(r"[a-z0-9._-]{1,64}")


def read_document(path: Path) -> Mapping[str, Any]:
    """The file as a mapping, its values not looked at.

    Raises:
        ConfigurationError: It cannot be read, or is no such file.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
        text = raw.decode("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigurationError(f"{path}: is larger than {_MAX_BYTES >> 20} MiB")
    try:
        # As a stream: errors in a text quote its lines.
        document = yaml.load(StringIO(text), _StrictLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigurationError(f"{path}: is not YAML: {_yaml_fault(error)}") from error
    if not isinstance(document, dict):
        raise ConfigurationError(
            f"{path}: must be a mapping with 'server', 'auth', 'state_dir' and 'certificates'"
        )
    return document


def problems_of(document: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
    """A line for each thing that is wrong, its place first."""
    problems = error.errors(include_url=False, include_input=False)
    for problem in problems:
        place = problem["loc"]
        # A list whose items are all wrong is called too short as well.
        is_echo = problem["type"] == "too_short" and any(
            other["loc"][: len(place)] == place and other is not problem for other in problems
        )
        if not is_echo:
            yield f"{_place(document, place)}: {_told(problem)}"


def _told(problem: ErrorDetails) -> str:
    match problem["type"]:
        case "extra_forbidden":
            return "there is no such field: check its spelling"
        case "missing":
            return "this field is missing"
        case "union_tag_invalid" | "union_tag_not_found":
            return "'format' is one of pem, der, pkcs12, java and template"
        case _:
            return problem["msg"].removeprefix("Value error, ")


def _place(document: object, location: tuple[int | str, ...]) -> str:
    """Such as ``certificates[web].renewal.fraction``: people count neither lines nor items."""
    text, here = "", document
    for index, part in enumerate(location):
        if isinstance(part, int):
            item = here[part] if isinstance(here, list) and part < len(here) else None
            name = item.get("name") if isinstance(item, dict) else None
            is_name = isinstance(name, str) and _NAME.fullmatch(name)
            text += f"[{name if is_name else part}]"
            here = item
        elif not (part in _KINDS and index and isinstance(location[index - 1], int)):
            text += f".{part}" if text else part
            here = here.get(part) if isinstance(here, dict) else None
    return text or "(whole file)"


def _yaml_fault(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML would let the last one win, and every alias:
    a few lines of them could stand for gigabytes."""

    def __init__(self, stream: TextIO) -> None:
        if not yaml.__with_libyaml__:
            super().__init__(stream)
            return
        # Read by libyaml, hundreds of certificates take a sixth of the time. What is read is
        # still put together in Python, where it can be refused.
        super().__init__("")
        parser: Any = yaml.CSafeLoader(stream)
        for name in ("check_event", "get_event", "peek_event"):
            setattr(self, name, getattr(parser, name))

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(
                None,
                None,
                "aliases (*name) are not taken: write it out",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be text", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
