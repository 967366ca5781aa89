"""The guide to outputs and reactions shows what the agent takes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from meshmint.agent.outputs import (
    DerOutput,
    JavaOutput,
    Output,
    OutputSettings,
    PemOutput,
    Pkcs12Output,
)
from meshmint.agent.outputs.templates import variables_of
from meshmint.agent.reactions import ReactionSettings
from pydantic import TypeAdapter
from support.held import MeshCa

GUIDE = (Path(__file__).parents[2] / "docs/guide/agent-outputs.md").read_text("utf-8")
OUTPUT: TypeAdapter[Any] = TypeAdapter(OutputSettings)
REACTION: TypeAdapter[Any] = TypeAdapter(ReactionSettings)


def shown(key: str) -> Iterator[Any]:
    """What stands below a key in the YAML of the guide."""
    for block in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.M | re.S):
        document = yaml.safe_load(block)
        documents = document if isinstance(document, list) else [document]
        for part in [*documents, *(c for d in documents for c in d.get("certificates", []))]:
            yield from part.get(key, [])
            if key == "outputs" and "format" in part:
                yield part


def test_every_output_in_the_guide_is_one() -> None:
    outputs = [Output(OUTPUT.validate_python(one)) for one in shown("outputs")]
    assert {output.settings.format for output in outputs} == {"pem", "java", "template"}
    assert len(outputs) == 6


def test_every_reaction_in_the_guide_is_one() -> None:
    reactions = [REACTION.validate_python(one) for one in shown("after_change")]
    assert len(reactions) == 4


def test_the_files_of_each_format_are_those_in_the_guide() -> None:
    store = {"directory": "/a", "password": {"environment": "A"}}
    for output in (
        PemOutput(format="pem", directory=Path("/a")),
        DerOutput(format="der", directory=Path("/a")),
        Pkcs12Output.model_validate({"format": "pkcs12"} | store),
        JavaOutput.model_validate({"format": "java"} | store),
    ):
        files = ", ".join(f"`{kind}: {file.name}`" for kind, file in output.files.present())
        assert f"| `{output.format}` | {files} |" in GUIDE


def test_every_variable_of_a_template_is_in_the_guide_and_no_other() -> None:
    mesh = MeshCa()
    table = GUIDE.split("## Templates")[1].split("A template may include")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.M)
    names = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row)}
    assert names == variables_of(mesh.issue(), mesh.bundles).keys()
