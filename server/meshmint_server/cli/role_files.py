"""Reads roles from YAML files, and says in which file and line something is wrong.

A file holds one role, several as YAML documents, a list of them, or a mapping
with the one key `roles`. Nothing is taken from it by halves: one bad role
refuses the lot.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from meshmint_server.cli.terminal import Failure
from meshmint_server.errors import InvalidRole
from meshmint_server.policy import Role

__all__ = ["read_roles"]

# A role is four deep; YAML can also be endless, by an alias to what holds it.
_MAX_DEPTH = 8

_STEP = re.compile(r"[^.\[\]]+")

Lines = Mapping[tuple[str, ...], int]


class _Loader(yaml.SafeLoader):
    """YAML without dates: a role's times are text, in RFC 3339 form."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class _Document:
    """One role as it stands in a file: its value, and the line of every part of it."""

    value: object
    line: int
    lines: Lines


def read_roles(paths: Iterable[Path]) -> tuple[Role, ...]:
    """Reads all roles of the files; "-" is standard input.

    Raises:
        Failure: A file cannot be read, or holds something else than roles that
            can work. Every problem is named, with file and line.
    """
    roles: dict[str, Role] = {}
    places: dict[str, str] = {}
    problems: list[str] = []
    for path in paths:
        name, text = _read(path)
        try:
            documents = list(_documents(name, text))
        except _Refused as refused:
            problems.append(str(refused))
            continue
        for document in documents:
            try:
                role = Role.from_document(_mapping(name, document))
            except _Refused as refused:
                problems.append(str(refused))
            except InvalidRole as error:
                problems += _problems(name, document, error)
            else:
                place = f"{name}:{document.line}"
                if role.name in roles:
                    problems.append(
                        f"{place}: role {role.name!r} stands at {places[role.name]} as well"
                    )
                roles[role.name] = role
                places[role.name] = place
    if problems:
        raise Failure("the roles cannot be used, and none was applied", problems)
    if not roles:
        raise Failure("there is no role in what was given")
    return tuple(roles.values())


class _Refused(Exception):
    """One problem, with its place."""


def _read(path: Path) -> tuple[str, str]:
    if str(path) == "-":
        return "(standard input)", sys.stdin.read()
    try:
        return str(path), path.read_text(encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Failure(f"{path}: is not UTF-8 text") from error


def _documents(name: str, text: str) -> Iterator[_Document]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            if node is not None:
                yield from _roles_in(name, node, loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _Refused(f"{name}:{line}: is not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise _Refused(f"{name}: is not YAML: {error}") from error
    finally:
        loader.dispose()


def _roles_in(name: str, node: yaml.Node, loader: _Loader) -> Iterator[_Document]:
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return  # An empty document, as between two separators.
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _roles_in(name, item, loader)
        return
    if isinstance(node, yaml.MappingNode) and [key.value for key, _ in node.value] == ["roles"]:
        yield from _roles_in(name, node.value[0][1], loader)
        return
    lines: dict[tuple[str, ...], int] = {}
    _index(name, node, (), lines)
    value = loader.construct_document(node)
    yield _Document(value, node.start_mark.line + 1, lines)


def _index(
    name: str, node: yaml.Node, path: tuple[str, ...], lines: dict[tuple[str, ...], int]
) -> None:
    """Notes the line of every key and item, and refuses a key that stands twice."""
    if len(path) > _MAX_DEPTH:
        raise _Refused(f"{name}:{node.start_mark.line + 1}: is nested too deep for a role")
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _Refused(
                        f"{name}:{key.start_mark.line + 1}: the key {key.value!r} stands twice"
                    )
                seen.add(key.value)
                lines[(*path, key.value)] = key.start_mark.line + 1
                _index(name, value, (*path, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[(*path, str(number))] = item.start_mark.line + 1
            _index(name, item, (*path, str(number)), lines)


def _mapping(name: str, document: _Document) -> dict[str, object]:
    if not isinstance(document.value, dict):
        raise _Refused(f"{name}:{document.line}: expected a role, a mapping with 'name' and more")
    return {str(key): value for key, value in document.value.items()}


def _problems(name: str, document: _Document, error: InvalidRole) -> Iterator[str]:
    if not error.violations:
        yield f"{name}:{document.line}: {error.message}"
    for violation in error.violations:
        line = _line(document, violation.field)
        yield f"{name}:{line}: {violation.field}: {violation.description}"


def _line(document: _Document, field: str) -> int:
    """The line of a field such as ``callers[0].namespace``, or of what holds it."""
    path = tuple(_STEP.findall(field))
    while path and path not in document.lines:
        path = path[:-1]
    return document.lines.get(path, document.line)
