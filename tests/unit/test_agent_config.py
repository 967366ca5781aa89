"""agent.yaml is read strictly, and what is wrong with it is told with its place."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import pytest
import yaml
from meshmint import ConfigurationError
from meshmint.agent.config import AgentConfig

WHOLE = """\
server: {address: "meshmint.example:8443", ca_file: /etc/meshmint/roots.pem}
auth: {token_file: /var/run/secrets/tokens/meshmint}
state_dir: /var/lib/meshmint-agent
certificates:
  - name: web
    role: web
    names: {common_name: www.example.org, dns_names: [www.example.org], ip_addresses: ["::1"]}
    ttl: 1h
    key: ec-p256
    renewal:
      fraction: 0.5
      jitter: 0.1
      not_before: 2030-01-31T08:00:00Z
      window: {start: 22:30, end: 06:00}
  - name: own
    key_from: service
health: 127.0.0.1:9911
"""

Load = Callable[[str], AgentConfig]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def loaded(text: str) -> AgentConfig:
        path = tmp_path / "agent.yaml"
        path.write_text(text)
        return AgentConfig.load(path)

    return loaded


def refused(load: Load, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(text)
    return caught.value.message


def test_a_whole_file_is_read(load: Load) -> None:
    config = load(WHOLE)
    web, own = config.certificates
    assert web.ttl == timedelta(hours=1)
    assert web.renewal.not_before == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert web.renewal.window is not None
    # YAML reads the first as a number of base 60, and the second as text.
    assert (web.renewal.window.start, web.renewal.window.end) == (time(22, 30), time(6))
    assert web.options()["ip_addresses"] == ("::1",)
    assert own.key_from == "service"
    assert str(config.health) == "127.0.0.1:9911"


def test_every_fault_is_told_with_its_place(load: Load) -> None:
    text = WHOLE.replace("fraction: 0.5", "fraction: 2").replace("role: web", "rolle: web")
    message = refused(load, text.replace("health: 127.0.0.1:9911", "health: 0.0.0.0:9911"))
    assert "  certificates[web].renewal.fraction: " in message
    assert "  certificates[web].rolle: there is no such field" in message
    assert "  health: write a loopback address" in message


def test_faults_of_outputs_and_reactions_are_told_where_people_wrote_them(load: Load) -> None:
    text = WHOLE.replace(
        "    key_from: service",
        """\
    outputs: [{format: pem, directory: rel, mode: 0644}, {format: exe}, {}]
    after_change: [{command: x y}, {}, {http: "http://127.0.0.1/", method: post}]
""",
    )
    assert refused(load, text).splitlines()[1:] == [
        "  certificates[own].outputs[0].directory: write the whole path, beginning with '/'",
        "  certificates[own].outputs[0].mode: write permissions in quotes, as three octal digits, "
        'such as "0640"',
        "  certificates[own].outputs[1]: 'format' is one of pem, der, pkcs12, java and template",
        "  certificates[own].outputs[2]: 'format' is one of pem, der, pkcs12, java and template",
        "  certificates[own].after_change[0].command: write the command as a list, as no shell "
        "reads it: [systemctl, reload, nginx]",
        "  certificates[own].after_change[1]: a reaction is one of 'command: […]', 'signal: …' "
        "and 'http: …'",
        "  certificates[own].after_change[2].method: String should match pattern "
        "'\\A[A-Z]{3,10}\\z'",
    ]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("sockets: [{path: /run/x/y.sock, certificates: [nope]}]", "no such certificate"),
        ("sockets: [{path: /run/x/y.sock}, {path: /run/x/y.sock}]", "is written twice"),
        (
            "templates: [{destination: /a/b, template: x}, {destination: /a/b, template: y}]",
            "twice",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(load: Load, more: str, told: str) -> None:
    assert told in refused(load, f"{WHOLE}{more}\n")


def test_a_key_that_stands_twice_is_refused_with_its_line(load: Load) -> None:
    message = refused(load, WHOLE + "state_dir: /elsewhere\n")
    assert "line 18, column 1: the key 'state_dir' stands twice" in message


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("{token_file: /var/run/secrets/tokens/meshmint}", "{}", "exactly one of"),
        ("{token_file: /", "{environment: TOKEN, token_file: /", "token_file and environment"),
        ("{token_file: /var/run/secrets/tokens/meshmint}", "{command: []}", "auth.command"),
        ("{token_file: /var/run/secrets/tokens/meshmint}", "{command: [cat]}", "whole path"),
        ("{token_file: /var/run/secrets/tokens/meshmint}", "{environment: 'A B'}", "name of an"),
        ("token_file: /var", "token_file: var", "whole path"),
        ("name: own", "name: web", "stands twice"),
        ("name: own", "name: ../own", "a name has"),
        ("name: own", 'name: "own\\n"', "a name has"),
        ("2030-01-31T08:00:00Z", "2030-01-31T08:00:00", "with a zone"),
        ("22:30", "25:00", "time of the day"),
        ("end: 06:00", "end: '22:30'", "empty"),
        ("jitter: 0.1", "jitter: 0.45", "stay above 0 and at most 0.9"),
        ("key: ec-p256", "key: ec-p257", "certificates[web].key"),
        ("ttl: 1h", "ttl: 0", "more than nothing"),
        ("ttl: 1h", "ttl: an hour", "is not a duration"),
        ('["::1"]', '["1.2.3"]', "IPv4 or IPv6"),
        ("names: {", "names: {uris: ['spiffe://a/b', 'SPIFFE://a/c'], ", "at most one SPIFFE ID"),
        ("health: 127.0.0.1:9911", "health: 192.0.2.1:80", "loopback"),
        ("health: 127.0.0.1:9911", "health: 127.0.0.1:0", "loopback"),
        ("address: ", "insecure: true, address: ", "cross the network in the clear"),
        ("meshmint.example:8443", "https://meshmint.example", "without a scheme"),
        ("state_dir: /var", "state_dir: var", "whole path"),
        ("state_dir: ", "1: x\nstate_dir: ", "a key must be text"),
        ("state_dir: ", "x: &a [*a]\nstate_dir: ", "aliases"),
        ("state_dir: ", "x: !!python/object:os.system {}\nstate_dir: ", "is not YAML"),
        (WHOLE, "[]", "must be a mapping"),
        (WHOLE, "", "must be a mapping"),
        (WHOLE, "[" * 5000, "nested too deeply"),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(
    load: Load, old: str, new: str, told: str
) -> None:
    assert old in WHOLE
    assert told in refused(load, WHOLE.replace(old, new, 1))


def test_no_message_quotes_a_value_that_may_be_secret(load: Load) -> None:
    text = WHOLE.replace("{token_file: /var/run/secrets/tokens/meshmint}", "{token: hush-hush}")
    assert "hush" not in refused(load, text)
    assert "hush" not in refused(load, WHOLE + "auth: {token: hush-hush\n")
    assert "hush" not in refused(load, WHOLE.replace("ttl: 1h", "ttl: [hush-hush]"))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        AgentConfig.load(tmp_path / "none.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigurationError, match="not UTF-8"):
        AgentConfig.load(tmp_path / "binary")


def test_only_role_names_and_key_make_another_certificate(load: Load) -> None:
    wanted = load(WHOLE).certificates[0].wanted()
    same = WHOLE.replace("ttl: 1h", "ttl: 2h").replace("fraction: 0.5", "fraction: 0.6")
    assert load(same).certificates[0].wanted() == wanted
    for old, new in (
        ("role: web", "role: other"),
        ("key: ec-p256", "key: rsa-2048"),
        ("[www.example.org]", "[www2.example.org]"),
        ("key: ec-p256", "key: ec-p256\n    key_from: service"),
    ):
        assert load(WHOLE.replace(old, new)).certificates[0].wanted() != wanted


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        WHOLE + "state_dir: /again\n",
        WHOLE.replace("state_dir: ", "x: &a [1]\ny: *a\nstate_dir: "),
        WHOLE.replace("state_dir: ", "x: !!python/object:os.system {}\nstate_dir: "),
        WHOLE + "---\nmore: 1\n",
        WHOLE + "open: 'text\n",
        WHOLE + "bell: \x07\n",
        "1: one\n",
        "x: " + "[" * 20_000,
        "",
    ],
)
def test_libyaml_and_python_read_and_refuse_alike(
    text: str, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outcome() -> object:
        try:
            return load(text)
        except ConfigurationError as error:
            # They have words of their own for what is no YAML at all.
            return str(error).partition(": ")[2].split(":")[:2]

    assert yaml.__with_libyaml__
    with_libyaml = outcome()
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert outcome() == with_libyaml
