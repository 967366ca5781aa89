"""The documentation is true to the code, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from meshmint.agent.config import AgentConfig
from meshmint_server.cli.role_files import read_roles
from meshmint_server.config import Config
from support.reference_pages import ROOT, pages

PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "client/*.md", "bench/**/*.md", "deploy/**/*.md")
    for page in ROOT.glob(pattern)
)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_reference_pages_are_what_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == pages()[path], "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_pages_that_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_the_example_configuration_can_be_used() -> None:
    config = Config.load(ROOT / "deploy" / "config.example.yaml")

    assert config.keys.pkcs11 is not None
    assert config.tls.mode == "own"


def test_the_example_configuration_of_the_agent_can_be_used() -> None:
    config = AgentConfig.load(ROOT / "deploy" / "agent.example.yaml")

    assert [certificate.name for certificate in config.certificates] == ["own", "web"]


def test_the_example_roles_can_be_used() -> None:
    config = Config.load(ROOT / "deploy" / "config.example.yaml")
    for role in read_roles([ROOT / "deploy" / "roles.example.yaml"]):
        assert not role.warnings(config.trust_domain), role.name


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_in_the_pages_is_yaml(page: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        list(yaml.safe_load_all(block))
