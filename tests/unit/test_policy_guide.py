"""docs/reference/roles.md against the code: its examples are roles, and no field is missing."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from meshmint_server.policy import CallerMatcher, Names, Role
from support.policy import decide_names, make_caller

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "roles.md").read_text()


def _examples() -> dict[str, Role]:
    documents = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    roles = [Role.from_document(document) for document in documents]
    return {role.name: role for role in roles}


def test_every_field_is_described() -> None:
    described = set(re.findall(r"`([a-z_]+)`", PAGE))
    assert set(Role.model_fields) <= described
    assert set(CallerMatcher.model_fields) <= described


def test_examples_grant_what_the_page_says() -> None:
    roles = _examples()
    assert set(roles) == {"workload", "internal"}
    caller = make_caller("shop-eu", "cart", spiffe_id="spiffe://example.org/ns/shop-eu/sa/cart")
    assert roles["workload"].is_for(caller)
    granted = decide_names(roles["workload"], caller=caller)
    assert str(granted.grant.spiffe_id) == "spiffe://example.org/ns/shop-eu/sa/cart"
    name = "cart.shop-eu.svc.cluster.local"
    assert decide_names(roles["workload"], Names(dns_names=(name,)), caller=caller).grant.sans
    assert not roles["internal"].is_for(caller)
