"""What the configuration may say about outputs and reactions, and what it is told otherwise."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from meshmint.agent.outputs import OutputSettings, PemOutput, TemplateOutput
from meshmint.agent.reactions import CommandReaction, HttpReaction, ReactionSettings, SignalReaction
from pydantic import TypeAdapter, ValidationError

OUTPUT: TypeAdapter[Any] = TypeAdapter(OutputSettings)
REACTION: TypeAdapter[Any] = TypeAdapter(ReactionSettings)
PEM = {"format": "pem", "directory": "/etc/web"}
STORE = {"format": "java", "directory": "/etc/web", "password": {"file": "/etc/password"}}
TEMPLATE = {"format": "template", "destination": "/etc/web.conf"}


def test_an_output_needs_no_more_than_its_format_and_directory() -> None:
    output = OUTPUT.validate_python(PEM)

    assert isinstance(output, PemOutput)
    assert {kind: file.name for kind, file in output.files.present()} == {
        "certificate": "cert.pem",
        "chain": "chain.pem",
        "fullchain": "fullchain.pem",
        "key": "key.pem",
        "bundle": "bundle.pem",
    }
    assert (output.mode, output.key_mode, output.directory_mode) == (0o644, 0o600, 0o755)


def test_files_that_are_named_are_the_only_ones() -> None:
    output = OUTPUT.validate_python(PEM | {"files": {"combined": "haproxy.pem"}})
    assert [(kind, file.name) for kind, file in output.files.present()] == [
        ("combined", "haproxy.pem")
    ]


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (PEM | {"format": "jks"}, "format"),
        (PEM | {"colour": "red"}, "Extra inputs"),
        (PEM | {"directory": "etc/web"}, "beginning with '/'"),
        (PEM | {"mode": 0o640}, "in quotes"),
        (PEM | {"mode": "640\n"}, "in quotes"),
        (PEM | {"mode": "4755"}, "in quotes"),
        (PEM | {"mode": "0666"}, "nobody but the owner needs to write"),
        (PEM | {"key_mode": "0644"}, "a private key is not for everyone"),
        (PEM | {"directory_mode": "0600"}, "all rights in a directory"),
        (PEM | {"files": {}}, "at least one file"),
        (PEM | {"files": {"key": "a", "chain": "a"}}, "the same name"),
        (PEM | {"files": {"key": {"name": "a", "mode": "0644"}}}, "not for everyone"),
        (PEM | {"files": {"key": "../key"}}, "without its directory"),
        (PEM | {"files": {"key": "key.pem\n"}}, "without its directory"),
        (PEM | {"owner": "root:root"}, "name or the number"),
        (PEM | {"owner": "root\n"}, "name or the number"),
        (PEM | {"owner": -1}, "name or the number"),
        (PEM | {"owner": True}, "name or the number"),
        (STORE | {"password": "changeit"}, "password"),
        (STORE | {"password": {}}, "either a file or an environment variable"),
        (STORE | {"password": {"file": "/a", "environment": "A"}}, "either a file or"),
        (STORE | {"password": {"environment": "A\n"}}, "environment"),
        (STORE | {"alias": "web\n"}, "alias"),
        (STORE | {"encryption": "none"}, "'modern' or 'compatible'"),
        (TEMPLATE, "give either 'source'"),
        (TEMPLATE | {"source": "/a", "template": "a"}, "give either 'source'"),
        (TEMPLATE | {"template": "a", "destination": "/"}, "destination's name"),
    ],
)
def test_an_output_that_cannot_be_meant_is_refused(document: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        OUTPUT.validate_python(document)
    assert told in str(refused.value)


def test_a_template_is_for_its_owner_alone_by_default() -> None:
    output = OUTPUT.validate_python(TEMPLATE | {"template": "a"})
    assert isinstance(output, TemplateOutput)
    assert output.mode == 0o600


def test_the_word_says_which_reaction_it_is() -> None:
    command = REACTION.validate_python({"command": ["true"], "timeout": "1m"})
    assert isinstance(command, CommandReaction)
    assert command.timeout == timedelta(minutes=1)
    signal = {"signal": "HUP", "pid_file": "/run/a.pid"}
    assert isinstance(REACTION.validate_python(signal), SignalReaction)
    assert isinstance(REACTION.validate_python({"http": "http://127.0.0.1/"}), HttpReaction)


HTTP = {"http": "https://example.org/reload"}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({}, "a reaction is one of"),
        ({"command": ["true"], "signal": "HUP", "pid_file": "/a"}, "a reaction is one of"),
        ("systemctl reload nginx", "a reaction is one of"),
        ({"command": "systemctl reload nginx"}, "as a list"),
        ({"command": []}, "at least 1"),
        ({"command": [""]}, "names a program"),
        ({"command": ["a\0b"]}, "zero byte"),
        ({"command": ["a"], "timeout": 0}, "more than nothing"),
        ({"command": ["a"], "environment": {"MESHMINT_NAME": "x"}}, "set by the agent"),
        ({"command": ["a"], "environment": {"A=B": "x"}}, "no name for a variable"),
        ({"signal": "KILL", "pid_file": "/a"}, "signal"),
        ({"signal": "HUP"}, "pid_file"),
        ({"http": "ftp://example.org/"}, "write a URL"),
        ({"http": "http://[::1/"}, "write a URL"),
        ({"http": "https://u:p@example.org/"}, "no password belongs into a URL"),
        (HTTP | {"method": "POST\n"}, "method"),
        (HTTP | {"headers": {"Authorization": "Bearer x"}}, "belongs into a file"),
        (HTTP | {"headers": {"X-A": "b\r\nX-B: c"}}, "characters that none may have"),
        (HTTP | {"headers": {"X A": "b"}}, "no name for a header"),
        (HTTP | {"expected_status": []}, "at least 1"),
        (
            {"http": "http://example.org/", "header_files": {"Authorization": "/a"}},
            "in the clear",
        ),
        ({"http": "http://127.0.0.1/", "ca_file": "/a"}, "without https"),
    ],
)
def test_a_reaction_that_cannot_be_meant_is_refused(document: Any, told: str) -> None:
    with pytest.raises(ValidationError) as refused:
        REACTION.validate_python(document)
    assert told in str(refused.value)


def test_reactions_that_do_the_same_have_the_same_key() -> None:
    def key(document: dict[str, Any]) -> str:
        reaction = REACTION.validate_python(document)
        assert isinstance(reaction, CommandReaction | SignalReaction | HttpReaction)
        return reaction.key

    assert key({"command": ["a"]}) == key({"command": ["a"], "timeout": 5, "attempts": 9})
    assert key({"command": ["a"]}) != key({"command": ["b"]})
    assert key({"command": ["a", "b"]}) != key({"command": ["a b"]})


def test_a_query_is_not_shown() -> None:
    reaction = REACTION.validate_python({"http": "https://example.org/reload?secret=1"})
    assert str(reaction) == "the call POST https://example.org/reload"
