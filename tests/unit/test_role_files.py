"""Role files: every shape that is taken, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from meshmint_server.cli.role_diff import role_diff
from meshmint_server.cli.role_files import read_roles
from meshmint_server.cli.terminal import Failure
from meshmint_server.policy import Role


def _file(tmp_path: Path, text: str, name: str = "roles.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "name: a\n---\nname: b\n",
        "---\nname: a\n---\n# nothing here\n---\nname: b\n",
        "- name: a\n- name: b\n",
        "roles:\n  - name: a\n  - name: b\n",
        '{"roles": [{"name": "a"}, {"name": "b"}]}',
    ],
    ids=["documents", "empty document", "list", "roles", "json"],
)
def test_roles_are_read_from_documents_lists_and_mappings(tmp_path: Path, text: str) -> None:
    roles = read_roles([_file(tmp_path, text)])

    assert [role.name for role in roles] == ["a", "b"]


def test_a_role_written_for_vault_is_read_as_it_stands(tmp_path: Path) -> None:
    (role,) = read_roles(
        [
            _file(
                tmp_path,
                "name: web\nallowed_domains: example.com,internal.example.com\n"
                "allow_subdomains: true\nmax_ttl: 720h\nkey_type: ec\nkey_bits: 256\n"
                'require_cn: "false"\nallowed_uri_sans: [spiffe://example.com/*]\n',
            )
        ]
    )

    assert role.allowed_domains == ("example.com", "internal.example.com")
    assert role.require_cn is False


def test_a_time_in_yaml_stays_text(tmp_path: Path) -> None:
    (role,) = read_roles([_file(tmp_path, "name: a\nnot_after: 2030-01-01T00:00:00Z\n")])

    assert "2030-01-01T00:00:00Z" in role.document()


def test_an_unknown_field_is_refused_with_file_and_line(tmp_path: Path) -> None:
    path = _file(
        tmp_path, "name: a\n---\nname: b\ncallers:\n  - authenticator: k\n    namspace: x\n"
    )

    with pytest.raises(Failure) as refused:
        read_roles([path])

    (problem,) = refused.value.problems
    assert problem.startswith(f"{path}:6: ")
    assert "namspace" in problem


def test_every_bad_role_of_every_file_is_named(tmp_path: Path) -> None:
    first = _file(tmp_path, "name: a\nttl: soon\n", "first.yaml")
    second = _file(tmp_path, "name: b\nkey_typ: ec\n---\nname: c\nkey_bits: 7\n", "second.yaml")

    with pytest.raises(Failure) as refused:
        read_roles([first, second])

    places = {problem.split(": ")[0] for problem in refused.value.problems}
    assert places == {f"{first}:2", f"{second}:2", f"{second}:5"}


def test_a_role_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = _file(tmp_path, "name: a\n---\nname: a\n")

    with pytest.raises(Failure) as refused:
        read_roles([path])

    assert refused.value.problems == (f"{path}:3: role 'a' stands at {path}:1 as well",)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("name: a\nttl: 1h\nttl: 2h\n", 3, "stands twice"),
        ("name: [a\n", 2, "is not YAML"),
        ("just text\n", 1, "expected a role"),
        ("callers: &loop [*loop]\n", 1, "too deep"),
        ("name: !!python/object/apply:os.system [id]\n", 1, "is not YAML"),
    ],
    ids=["key twice", "no YAML", "text", "endless", "python object"],
)
def test_what_is_no_role_is_refused_with_its_line(
    tmp_path: Path, text: str, line: int, what: str
) -> None:
    path = _file(tmp_path, text)

    with pytest.raises(Failure) as refused:
        read_roles([path])

    (problem,) = refused.value.problems
    assert problem.startswith(f"{path}:{line}: ")
    assert what in problem


@pytest.mark.parametrize("text", ["", "---\n---\n", "roles: []\n"])
def test_a_file_without_a_role_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(Failure, match="no role"):
        read_roles([_file(tmp_path, text)])


def test_a_missing_file_is_a_plain_message(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="cannot be read: No such file"):
        read_roles([tmp_path / "none.yaml"])


def test_the_difference_shows_what_goes_and_what_comes() -> None:
    before = Role.from_document({"name": "a", "ttl": "1h", "organization": ["Shop"]})
    after = Role.from_document({"name": "a", "ttl": "2h", "key_type": "ec"})

    lines = list(role_diff(before, after))

    assert "- organization:" in lines
    assert "+ key_type: ec" in lines
    assert [line for line in lines if "ttl" in line] == ["- ttl: 1h", "+ ttl: 2h"]
    assert not list(role_diff(after, after))
