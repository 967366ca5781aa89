"""The examples in the guide are real settings and matchers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from meshmint_server.authn import Authenticators, AuthenticatorSettings, Refusal
from meshmint_server.policy import CallerMatcher
from meshmint_server.spiffe import TrustDomain
from pydantic import TypeAdapter

GUIDE = (Path(__file__).parents[2] / "docs/guide/callers.md").read_text(encoding="utf-8")


def examples(first_word: str) -> list[Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    return [yaml.safe_load(block) for block in blocks if block.startswith(first_word)]


async def test_every_example_of_authenticators_can_be_built() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(tuple[AuthenticatorSettings, ...])
    found = examples("authenticators:")

    assert len(found) == 5
    for example in found:
        settings = adapter.validate_python(example["authenticators"])
        await Authenticators.build(settings, TrustDomain("example.org")).close()


def test_every_example_of_callers_is_a_matcher() -> None:
    found = examples("callers:")

    assert len(found) == 1
    for matcher in found[0]["callers"]:
        CallerMatcher.model_validate(matcher)


def test_every_reason_is_explained() -> None:
    for reason in Refusal:
        assert f"`{reason.value}`" in GUIDE
