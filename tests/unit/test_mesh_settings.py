"""The configuration of Istio's and Linkerd's protocols: what cannot work is refused at once."""

from __future__ import annotations

from typing import Any

import pytest
from meshmint_server.cli.doctor.mesh import check_mesh_protocols
from meshmint_server.config import Config
from meshmint_server.store import RoleRow
from pydantic import ValidationError

CLUSTER = {
    "kind": "kubernetes",
    "name": "cluster",
    "issuer": "https://cluster.test",
    "audiences": ["istio-ca"],
}
PEOPLE = {
    "kind": "jwt",
    "name": "people",
    "issuer": "https://people.test",
    "audiences": ["istio-ca"],
    "discovery_url": "https://people.test",
}
ISTIO = {"enabled": True, "role": "istio", "authenticators": ["cluster"]}
LINKERD = {"enabled": True, "role": "linkerd", "authenticators": ["cluster"]}


def config(**sections: Any) -> Config:
    return Config.model_validate(
        {
            "trust_domain": "example.org",
            "store": "sqlite:////var/lib/meshmint/meshmint.db",
            "keys": {"pkcs11": "pkcs11:token=t?module-path=/m.so&pin-source=file:/pin"},
            "authenticators": [CLUSTER, PEOPLE],
            **sections,
        }
    )


def test_both_are_off_unless_they_are_switched_on() -> None:
    for sections in (
        {},
        {
            "istio": ISTIO | {"enabled": False},
            "linkerd": LINKERD | {"enabled": False, "listen": "127.0.0.1:8080"},
        },
    ):
        made = config(**sections)
        assert made.istio.build() is None
        assert made.linkerd.build(made.trust_domain) is None
        assert made.linkerd.entrance is None


def test_linkerds_identities_end_with_its_trust_domain_or_ours() -> None:
    ours = config(linkerd=LINKERD)
    rules = ours.linkerd.build(ours.trust_domain)
    assert rules is not None
    assert rules.suffix == "serviceaccount.identity.linkerd.example.org"

    theirs = config(linkerd=LINKERD | {"namespace": "mesh", "trust_domain": "cluster.local"})
    rules = theirs.linkerd.build(theirs.trust_domain)
    assert rules is not None
    assert rules.suffix == "serviceaccount.identity.mesh.cluster.local"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"istio": {"enabled": True, "authenticators": ["cluster"]}}, "role"),
        ({"istio": {"enabled": True, "role": "istio"}}, "authenticators"),
        ({"istio": ISTIO | {"authenticators": ["other"]}}, "'other'"),
        ({"istio": ISTIO | {"clusters": {"a": "people"}}}, "'people'"),
        ({"istio": ISTIO | {"cert_signers": {"a": ""}}}, "no name"),
        ({"istio": ISTIO | {"node_accounts": ["ztunnel"]}}, "istio-system/ztunnel"),
        ({"istio": ISTIO | {"node_accounts": ["a/b/c"]}}, "istio-system/ztunnel"),
        ({"istio": ISTIO | {"node_accounts": ["istio-system/*"]}}, "istio-system/ztunnel"),
        ({"istio": ISTIO | {"node_accounts": ["istio-system/ztunnel\n"]}}, "istio-system/ztunnel"),
        (
            {"istio": ISTIO | {"authenticators": ["people"], "node_accounts": ["a/b"]}},
            "kind 'kubernetes'",
        ),
        ({"istio": ISTIO | {"roles": ["a"]}}, "Extra inputs"),
        ({"linkerd": {"enabled": True, "authenticators": ["cluster"]}}, "role"),
        ({"linkerd": LINKERD | {"authenticators": ["people"]}}, "kind 'kubernetes'"),
        ({"linkerd": LINKERD | {"namespace": "a.b"}}, "namespace"),
        ({"linkerd": LINKERD | {"trust_domain": "Cluster.local"}}, "lower case"),
        ({"linkerd": LINKERD | {"trust_domain": "cluster.local\n"}}, "lower case"),
        (
            {"linkerd": LINKERD | {"listen": "127.0.0.1:8086"}, "tls": {"mode": "none"}},
            "linkerd.listen",
        ),
        ({"linkerd": LINKERD | {"listen": "127.0.0.1:8443"}}, "'listen' and 'linkerd.listen'"),
        ({"linkerd": LINKERD | {"listen": "127.0.0.1:8080"}}, "'http.listen' and 'linkerd.listen'"),
        (
            {"listen": "0.0.0.0:8443", "http": {"listen": "0.0.0.0:8443"}},
            "'listen' and 'http.listen'",
        ),
        (
            {"http": {"listen": "[::1]:1"}, "bundle_endpoint": {"listen": "[::1]:1"}},
            "'http.listen' and 'bundle_endpoint.listen'",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_what_to_do(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**sections)
    assert words in str(caught.value)


# --- what doctor says of them -----------------------------------------------------------

SERVER_NAME = "linkerd-identity.linkerd.serviceaccount.identity.linkerd.example.org"
WHOLE = {
    "istio": ISTIO | {"node_accounts": ["istio-system/ztunnel"]},
    "linkerd": LINKERD | {"listen": "127.0.0.1:8086"},
    "tls": {"dns_names": [SERVER_NAME]},
}


def findings(*roles: str, **sections: Any) -> list[tuple[str, str, str]]:
    rows = [RoleRow(name, {}) for name in roles]
    found = check_mesh_protocols(config(**{**WHOLE, **sections}), rows)
    return [(one.level.value, one.subject, one.message + one.advice) for one in found]


def test_doctor_finds_nothing_wrong_with_what_is_whole_or_off() -> None:
    assert [one[:2] for one in findings("istio", "linkerd")] == [("ok", "istio"), ("ok", "linkerd")]
    assert findings(istio={}, linkerd={}) == []


@pytest.mark.parametrize(
    ("roles", "sections", "level", "subject", "words"),
    [
        (("linkerd",), {}, "error", "istio", "no role 'istio'"),
        (("istio",), {}, "error", "linkerd", "no role 'linkerd'"),
        (
            ("istio", "linkerd"),
            {"istio": ISTIO | {"cert_signers": {"a": "b"}}},
            "error",
            "istio",
            "no role 'b'",
        ),
        (
            ("istio", "linkerd"),
            {"authenticators": [CLUSTER | {"spiffe_id": "spiffe://{trust_domain}/{namespace}"}]},
            "warning",
            "istio",
            "another form",
        ),
        (("istio", "linkerd"), {"linkerd": LINKERD}, "warning", "linkerd", "linkerd.listen"),
        (("istio", "linkerd"), {"tls": {"mode": "own"}}, "warning", "linkerd", SERVER_NAME),
    ],
)
def test_doctor_says_whom_nobody_can_serve(
    roles: tuple[str, ...], sections: dict[str, Any], level: str, subject: str, words: str
) -> None:
    (bad,) = [one for one in findings(*roles, **sections) if one[0] != "ok"]
    assert bad[:2] == (level, subject)
    assert words in bad[2]
