"""What may stand in the settings of a unix socket, and what is refused with advice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from meshmint.agent.sockets import SocketSettings
from pydantic import ValidationError


def parse(**changes: Any) -> SocketSettings:
    return SocketSettings.model_validate({"path": "/run/meshmint-agent/agent.sock", **changes})


def test_a_path_is_enough_and_the_rest_is_careful() -> None:
    settings = parse()

    assert settings.mode == 0o660
    assert settings.protocols == ("workload-api", "sds")
    assert settings.certificates is None
    assert not settings.shared_directory
    assert settings.owner is settings.group is None


def test_all_may_be_set() -> None:
    settings = parse(
        owner=0,
        group="www-data",
        mode="666",
        protocols=["sds"],
        certificates=["web", "api"],
        shared_directory=True,
        max_streams=1,
    )

    assert settings.mode == 0o666
    assert settings.certificates == ("web", "api")
    assert settings.group == "www-data"


@pytest.mark.parametrize(
    ("field", "value", "advice"),
    [
        ("path", "@meshmint", "abstract sockets have no permissions"),
        ("path", "\0meshmint", "abstract sockets have no permissions"),
        ("path", "/run/mesh\0mint/s", "zero byte"),
        ("path", "run/meshmint/s", "beginning with one '/'"),
        ("path", "//run/meshmint/s", "beginning with one '/'"),
        ("path", "/run/../s/s", "without '.'"),
        ("path", "/run/meshmint/", "a '/' at its end"),
        ("path", "", "the whole path"),
        ("path", "/agent.sock", "a directory of its own"),
        ("path", "unix:///run/meshmint/s", "the whole path"),
        ("path", "/run/" + "m" * 91 + "/s", "too long"),
        ("path", "/run/m/" + "s" * 101, "too long"),
        ("path", "/run/" + "ü" * 46 + "/s", "too long"),
        # What YAML makes of 0660 and of 660.
        ("mode", 432, "in quotes"),
        ("mode", 660, "in quotes"),
        ("mode", "0770", "without execution"),
        ("mode", "0660\n", "in quotes"),
        ("mode", "4660", "octal digits"),
        ("mode", "0460", "begin with 6"),
        ("mode", "0888", "octal digits"),
        ("owner", -1, "between 0"),
        ("owner", 2**32 - 1, "between 0"),
        ("owner", True, "a name or a number"),
        ("group", "", "a name or a number"),
        ("protocols", [], "each once"),
        ("protocols", ["sds", "sds"], "each once"),
        ("protocols", ["spiffe"], "workload-api"),
        ("certificates", [], "leave the list out"),
        ("certificates", ["web", "web"], "each certificate once"),
        ("max_streams", 0, "greater than or equal to 1"),
        ("streams", 1, "not permitted"),
    ],
)
def test_what_cannot_or_must_not_work_is_refused_with_advice(
    field: str, value: object, advice: str
) -> None:
    with pytest.raises(ValidationError, match=advice):
        parse(**{field: value})


def test_longest_path_fits() -> None:
    assert parse(path="/run/" + "m" * 90 + "/s")
    assert parse(path="/run/m/" + "s" * 100)


@pytest.mark.parametrize("page", ["envoy.md", "workload-api.md"])
def test_sockets_in_the_guide_can_be_used(page: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide" / page).read_text()
    blocks = re.findall(r"^ *```yaml\n(.*?)^ *```", text, re.M | re.S)
    found = [one for block in blocks for one in yaml.safe_load(block).get("sockets", ())]

    assert [SocketSettings.model_validate(one).path for one in found] == [
        "/run/meshmint-agent/agent.sock"
    ]
