"""The examples for Istio and Linkerd fit each other, our own models, and what proxies ask."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from meshmint_server.authn import Authenticators
from meshmint_server.cli.doctor.mesh import check_mesh_protocols
from meshmint_server.cli.role_files import read_roles
from meshmint_server.config import Config
from meshmint_server.policy import (
    Bounds,
    Caller,
    CertificateRequest,
    Decision,
    ReservedNames,
    Role,
    Validity,
    choose_role,
    decide,
    only_dns_name,
    only_spiffe_id,
    parse_csr,
    parse_csr_der,
)
from meshmint_server.spiffe import SpiffeId
from meshmint_server.store import RoleRow
from support.proxies import linkerd_csr, pilot_agent_csr, ztunnel_csr

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 1, tzinfo=UTC)
MESHES = ["istio", "linkerd"]


def load(mesh: str) -> tuple[Config, dict[str, Role]]:
    directory = ROOT / "deploy" / mesh
    roles = {role.name: role for role in read_roles([directory / "roles.yaml"])}
    return Config.load(directory / "config.yaml"), roles


def documents(path: str) -> list[Any]:
    return list(yaml.safe_load_all((ROOT / "deploy" / path).read_text(encoding="utf-8")))


def decided(mesh: str, request: CertificateRequest, caller: Caller) -> Decision:
    config, roles = load(mesh)
    name = config.istio.role if mesh == "istio" else config.linkerd.role
    reserved = ReservedNames.of_service(
        SpiffeId(config.trust_domain, ("meshmint", "server")),
        config.tls.dns_names,
        config.tls.ip_addresses,
    )
    bounds = Bounds(config.trust_domain, config.default_ttl, config.max_ttl, reserved)
    return decide(choose_role(roles, caller, name), caller, request, now=NOW, bounds=bounds)


def caller_of(config: Config, namespace: str, account: str) -> Caller:
    return Caller(
        authenticator="cluster",
        subject=f"system:serviceaccount:{namespace}:{account}",
        attributes={"kubernetes.namespace": namespace, "kubernetes.service_account": account},
        spiffe_id=SpiffeId(config.trust_domain, ("ns", namespace, "sa", account)),
        expires_at=NOW + timedelta(hours=1),
    )


@pytest.mark.parametrize("mesh", MESHES)
async def test_configuration_and_roles_can_be_used(mesh: str) -> None:
    config, roles = load(mesh)

    await Authenticators.build(config.authenticators, config.trust_domain).close()
    for role in roles.values():
        assert not role.warnings(config.trust_domain), role.name
    found = list(check_mesh_protocols(config, [RoleRow(name, {}) for name in roles]))
    assert [one.level.value for one in found] == ["ok"], found


@pytest.mark.parametrize("make", [pilot_agent_csr, ztunnel_csr])
def test_istios_role_grants_what_agents_ask_for(make: Any) -> None:
    config, _ = load("istio")
    caller = caller_of(config, "shop", "cart")
    csr = only_spiffe_id(parse_csr(make(str(caller.spiffe_id))), caller.spiffe_id)

    decision = decided(
        "istio", CertificateRequest(csr=csr, validity=Validity(ttl=timedelta(days=1))), caller
    )

    assert decision.grant.name_texts == ("URI:spiffe://example.org/ns/shop/sa/cart",)
    assert decision.not_after == NOW + timedelta(hours=24)


def test_linkerds_role_grants_what_proxies_ask_for() -> None:
    config, _ = load("linkerd")
    caller = caller_of(config, "shop", "cart")
    rules = config.linkerd.build(config.trust_domain)
    assert rules is not None
    name = rules.identity_of(caller)
    assert name == "cart.shop.serviceaccount.identity.linkerd.cluster.local"

    csr = only_dns_name(parse_csr_der(linkerd_csr(name)), name)
    decision = decided("linkerd", CertificateRequest(csr=csr), caller)

    assert list(decision.grant.sans) == [x509.DNSName(name)]
    assert decision.not_after == NOW + timedelta(hours=24)


def test_istios_values_fit_the_configuration() -> None:
    config, _ = load("istio")
    (istiod,), (ztunnel,) = (
        documents("istio/istiod-values.yaml"),
        documents("istio/ztunnel-values.yaml"),
    )
    port = str(config.listen).rpartition(":")[2]

    assert istiod["meshConfig"]["trustDomain"] == config.trust_domain.name
    assert ztunnel["env"]["TRUST_DOMAIN"] == config.trust_domain.name
    assert istiod["global"]["caAddress"] == ztunnel["caAddress"]
    host, _, asked_port = ztunnel["caAddress"].partition(":")
    assert host in config.tls.dns_names
    assert asked_port == port
    assert istiod["pilot"]["env"]["ENABLE_CA_SERVER"] == "false"

    by_kind = {one["kind"]: one for one in documents("istio/kubernetes.yaml")}
    service = by_kind["Service"]["metadata"]
    assert host == f"{service['name']}.{service['namespace']}.svc"
    assert str(by_kind["Service"]["spec"]["ports"][0]["port"]) == port
    assert str(by_kind["EndpointSlice"]["ports"][0]["port"]) == port


def test_linkerds_values_fit_the_configuration() -> None:
    config, _ = load("linkerd")
    (values,) = documents("linkerd/values.yaml")

    assert values["identityTrustDomain"] == config.linkerd.trust_domain
    assert values["identity"]["serviceAccountTokenProjection"] is True
    by_kind = {one["kind"]: one for one in documents("linkerd/kubernetes.yaml")}
    slice_ = by_kind["EndpointSlice"]
    assert slice_["metadata"]["namespace"] == config.linkerd.namespace
    assert config.linkerd.entrance is not None
    assert slice_["ports"][0]["port"] == config.linkerd.entrance.port


@pytest.mark.parametrize(
    ("mesh", "allowed"),
    [
        ("istio", {("tokenreviews", "create"), ("pods", "list")}),
        ("linkerd", {("tokenreviews", "create")}),
    ],
)
def test_the_reviewers_account_may_do_what_it_must_and_no_more(
    mesh: str, allowed: set[tuple[str, str]]
) -> None:
    manifests = documents(f"{mesh}/kubernetes.yaml")
    by_kind = {one["kind"]: one for one in manifests}
    granted = {
        (resource, verb)
        for rule in by_kind["ClusterRole"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }

    assert granted == allowed
    binding = by_kind["ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == by_kind["ClusterRole"]["metadata"]["name"]
    account = by_kind["ServiceAccount"]["metadata"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", **account}]


@pytest.mark.parametrize("mesh", MESHES)
def test_what_the_guide_shows_is_what_the_examples_say(mesh: str) -> None:
    directory = ROOT / "deploy" / mesh
    config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    roles = {one["name"]: one for one in documents(f"{mesh}/roles.yaml")}
    guide = (ROOT / "docs" / "guide" / f"{mesh}.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(one) for one in re.findall(r"^```yaml\n(.*?)^```", guide, re.M | re.S)]

    assert len(blocks) == 2
    for block in blocks:
        whole = roles[block["name"]] if "name" in block else config
        assert block == {key: whole[key] for key in block}
