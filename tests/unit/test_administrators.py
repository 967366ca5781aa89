"""Who is an administrator, and that a role which cannot be read can still be mended."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from meshmint_server.config import Config, ConfigError
from meshmint_server.issuance import RoleChange, put_role
from meshmint_server.policy import Role
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import RoleRow, Store


def load(tmp_path: Path, admins: list[dict[str, str]]) -> Config:
    path = tmp_path / "config.yaml"
    document = {
        "trust_domain": "mesh.example",
        "store": f"sqlite:///{tmp_path}/store.db",
        "keys": {"file_directory": str(tmp_path), "passphrase_source": "env:PASSPHRASE"},
        "admins": admins,
    }
    path.write_text(yaml.safe_dump(document))
    return Config.load(path)


def test_a_matcher_that_makes_everybody_an_administrator_is_refused(tmp_path: Path) -> None:
    assert len(load(tmp_path, [{"authenticator": "idp", "subject": "alice"}]).admins) == 1
    with pytest.raises(ConfigError, match="every caller an administrator"):
        load(tmp_path, [{"subject": "alice"}, {}])


@pytest.mark.parametrize(
    "field", ["authenticator", "subject", "namespace", "service_account", "spiffe_id"]
)
def test_a_text_that_came_out_empty_makes_nobody_an_administrator(
    tmp_path: Path, field: str
) -> None:
    with pytest.raises(ConfigError, match="narrows nothing"):
        load(tmp_path, [{"authenticator": "idp", field: ""}])


async def test_a_stored_role_that_cannot_be_read_can_be_put_again(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path}/store.db")
    await store.migrate()
    await store.put_role(RoleRow("web", '{"name":"web","from_a_later_version":1}'))
    outcome = await put_role(
        store,
        Role.from_document({"name": "web", "spiffe": "own"}),
        trust_domain=TrustDomain("mesh.example"),
        validate_only=False,
    )
    assert (outcome.change, outcome.before) == (RoleChange.UPDATED, None)
    row = await store.get_role("web")
    await store.close()
    assert row is not None
    assert Role.from_document(row.document).spiffe == "own"
