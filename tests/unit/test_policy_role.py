"""Role documents: Vault's spellings, all violations at once, one canonical form."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from meshmint_server.errors import InvalidRole
from meshmint_server.policy import PolicyIdentifier, Role
from meshmint_server.policy.durations import format_duration, parse_duration
from support.policy import TRUST_DOMAIN, make_role, violations_of


def _violations(**fields: object) -> dict[str, str]:
    with pytest.raises(InvalidRole) as caught:
        make_role(**fields)
    return violations_of(caught.value)


def test_defaults_are_vaults() -> None:
    role = Role(name="r")
    assert role.key_type == "rsa"
    assert role.minimum_key_bits == 2048
    assert role.key_usage == ("DigitalSignature", "KeyAgreement", "KeyEncipherment")
    assert role.not_before_duration == timedelta(seconds=30)
    for field in (
        "allow_localhost", "allow_wildcard_certificates", "enforce_hostnames", "allow_ip_sans",
        "server_flag", "client_flag", "use_csr_common_name", "use_csr_sans", "require_cn",
    ):  # fmt: skip
        assert getattr(role, field) is True
    assert role.ttl is None
    assert role.max_ttl is None
    assert role.cn_validations == ("email", "hostname")


def test_role_for_x509_svids_requires_no_common_name() -> None:
    assert not make_role(spiffe="own").require_cn
    assert make_role(spiffe="own", require_cn=True, allow_localhost=True).require_cn
    assert make_role().require_cn


@pytest.mark.parametrize("spiffe", ["own", "matching"])
def test_role_for_x509_svids_grants_no_address_and_no_local_host_unless_it_says_so(
    spiffe: str,
) -> None:
    patterns = [] if spiffe == "own" else ["spiffe://example.org/*"]
    fields = {"spiffe": spiffe, "allowed_uri_sans": patterns}
    assert not make_role(**fields).allow_ip_sans
    assert not make_role(**fields).allow_localhost
    assert make_role(**fields, allow_ip_sans=True).allow_ip_sans
    assert make_role().allow_ip_sans
    assert make_role().allow_localhost


def test_vaults_command_line_spellings_are_read() -> None:
    text = make_role(
        allow_any_name="true", require_cn="0", allowed_domains="a.test, b.test,,a.test",
        ttl="1h", max_ttl="1d", key_bits="384", signature_bits="384", key_usage="digitalsignature",
        ext_key_usage="TimeStamping", ext_key_usage_oids="1.2.3,1.2.4", ou="A,B",
        policy_identifiers="1.3.6.1.4.1.1,1.3.6.1.4.1.2", not_before_duration=60,
    )  # fmt: skip
    typed = make_role(
        allow_any_name=True, require_cn=False, allowed_domains=["a.test", "b.test"],
        ttl=3600, max_ttl="86400s", key_bits=384, signature_bits=384,
        key_usage=["DigitalSignature"],
        ext_key_usage=["TimeStamping"], ext_key_usage_oids=["1.2.3", "1.2.4"], ou=["A", "B"],
        policy_identifiers=[{"oid": "1.3.6.1.4.1.1"}, {"oid": "1.3.6.1.4.1.2"}],
        not_before_duration="1m",
    )  # fmt: skip
    assert text == typed
    assert text.document() == typed.document()


def test_policy_identifiers_may_be_json_text() -> None:
    role = make_role(
        policy_identifiers='[{"oid":"1.3.6.1.4.1.7.8","notice":"I","cps":"https://a.b/"}]'
    )
    assert role.policy_identifiers == (
        PolicyIdentifier(oid="1.3.6.1.4.1.7.8", notice="I", cps="https://a.b/"),
    )
    (policy,) = role.policies
    assert policy.policy_qualifiers is not None
    assert policy.policy_qualifiers[0] == "https://a.b/"


def test_empty_yaml_values_mean_the_default() -> None:
    assert make_role(ttl=None, allowed_domains=None, require_cn=None) == make_role()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"spiffe": "own", "ttl": "1h30m5s"},
        {"spiffe": "own", "require_cn": True, "allow_localhost": True},
        {"spiffe": "own", "allow_ip_sans": True},
        {"require_cn": False},
        {"callers": [{"namespace": "a"}, {"attributes": {"claims.x": "*"}, "spiffe_id": "*"}]},
        {"key_usage": [], "ext_key_usage": ["any"], "cn_validations": ["disabled"]},
        {"not_before": "2026-01-01T01:00:00+01:00", "not_after": "2027-01-01T00:00:00Z"},
        {"not_after_bound": "2027-01-01T01:00:00+01:00"},
        {"policy_identifiers": [{"oid": "1.2.3", "notice": "n"}], "organization": ["\u00dc, Inc"]},
        {"allowed_ip_sans_cidr": ["10.0.0.0/8"], "allowed_other_sans": ["1.2.3;UTF8:*"]},
    ],
)
def test_document_is_canonical_and_reads_back_as_the_same_role(fields: dict[str, object]) -> None:
    role = make_role(**fields)
    document = role.document()
    again = Role.from_document(document)
    assert again == role
    assert again.document() == document
    assert list(json.loads(document)) == sorted(json.loads(document))


def test_document_holds_only_what_differs_from_the_defaults() -> None:
    role = make_role(spiffe="own", key_bits=0, allow_localhost=False, ttl="60m")
    assert json.loads(role.document()) == {
        "name": "test", "callers": [{}], "key_type": "ec", "spiffe": "own", "ttl": "1h",
    }  # fmt: skip


def test_roles_are_equal_whatever_was_worked_out_before() -> None:
    role, other = make_role(), make_role()
    assert role.key_usage_of
    assert role == other


# Refusals


def test_all_violations_of_a_role_come_at_once() -> None:
    bad = {"ttl": "soon", "kye_type": "ec", "key_type": "dsa", "allowed_ip_sans_cidr": "x"}
    assert set(_violations(**bad)) == set(bad)
    assert set(
        _violations(generate_lease=True, no_store_metadata="true", key_bits=224, ttl=2, max_ttl=1)
    ) == {"generate_lease", "no_store_metadata", "key_bits", "ttl"}


def test_misspelt_field_gets_a_hint() -> None:
    assert "allowed_domains" in _violations(alowed_domains="a.test")["alowed_domains"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": ".hidden"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a\n"}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"callers": [{"namespce": "x"}]}, "callers[0].namespce"),
        ({"callers": [{"spiffe_id": "spiffe://*/x"}]}, "callers[0].spiffe_id"),
        ({"callers": [{"spiffe_id": "https://a.test/"}]}, "callers[0].spiffe_id"),
        ({"spiffe": "always"}, "spiffe"),
        ({"generate_lease": True}, "generate_lease"),
        ({"no_store_metadata": True}, "no_store_metadata"),
        ({"allow_token_displayname": True}, "allow_token_displayname"),
        ({"serial_number_source": "json"}, "serial_number_source"),
        ({"ttl": -1}, "ttl"),
        ({"ttl": "-1h"}, "ttl"),
        ({"ttl": "1.5h"}, "ttl"),
        ({"ttl": 1.5}, "ttl"),
        ({"ttl": True}, "ttl"),
        ({"ttl": "1h\n1"}, "ttl"),
        ({"ttl": "9999999d"}, "ttl"),
        ({"ttl": 10**30}, "ttl"),
        ({"ttl": "2h", "max_ttl": "1h"}, "ttl"),
        ({"ttl": "2h", "not_after": "2030-01-01T00:00:00Z"}, "ttl"),
        ({"ttl_over_max": "drop"}, "ttl_over_max"),
        ({"not_before": "yesterday"}, "not_before"),
        ({"not_before": "2026-01-01"}, "not_before"),
        ({"not_after": "2026-13-01T00:00:00Z"}, "not_after"),
        ({"not_after": "0001-01-01T00:00:00+23:00"}, "not_after"),
        ({"not_before": "2027-01-01T00:00:00Z", "not_after": "2026-01-01T00:00:00Z"}, "not_after"),
        ({"not_before_bound": "sometimes"}, "not_before_bound"),
        ({"not_after_bound": "sometimes"}, "not_after_bound"),
        ({"key_type": "dsa"}, "key_type"),
        ({"key_type": "rsa", "key_bits": 1024}, "key_bits"),
        ({"key_type": "rsa", "key_bits": 8192}, "key_bits"),
        ({"key_type": "ec", "key_bits": 224}, "key_bits"),
        ({"key_type": "any", "key_bits": 2048}, "key_bits"),
        ({"signature_bits": 160}, "signature_bits"),
        ({"key_usage": ["DigitalSignatur"]}, "key_usage"),
        ({"key_usage": ["CertSign"]}, "key_usage"),
        ({"key_usage": ["keycertsign"]}, "key_usage"),
        ({"key_usage": ["DigitalSignature", "CRLSign"]}, "key_usage"),
        ({"key_usage": ["KeyEncipherment"]}, "key_usage"),  # an EC key has none of these
        ({"key_usage": ["DigitalSignature", "EncipherOnly"]}, "key_usage"),
        ({"ext_key_usage": ["ServerAuthentication"]}, "ext_key_usage"),
        ({"ext_key_usage_oids": ["abc"]}, "ext_key_usage_oids"),
        ({"ext_key_usage": ["OCSPSigning"]}, "ext_key_usage"),
        ({"ext_key_usage": "ServerAuth, extkeyusageocspsigning"}, "ext_key_usage"),
        ({"ext_key_usage_oids": ["1.3.6.1.5.5.7.3.9"]}, "ext_key_usage_oids"),
        ({"cn_validations": ["ip"]}, "cn_validations"),
        ({"cn_validations": ["disabled", "email"]}, "cn_validations"),
        ({"cn_validations": []}, "cn_validations"),
        ({"allow_localhost": False, "allow_ip_sans": False}, "require_cn"),
        (
            {"allow_localhost": False, "allow_ip_sans": False, "allowed_domains": "a.test"},
            "require_cn",
        ),
        ({"allowed_domains": ["a..test"]}, "allowed_domains[0]"),
        ({"allowed_domains": ["a.test", "b.test."]}, "allowed_domains[1]"),
        ({"allowed_domains": ["under_score.test"]}, "allowed_domains[0]"),
        ({"allowed_domains": ["ftp*.a.test"]}, "allowed_domains[0]"),
        ({"allowed_domains": ["b\u00fc*.test"], "allow_glob_domains": True}, "allowed_domains[0]"),
        ({"allowed_domains": ["{{ kubernetes.namespace }}.svc"]}, "allowed_domains[0]"),
        (
            {"allowed_domains": ["{{ spiffe_id }}"], "allowed_domains_template": True},
            "allowed_domains[0]",
        ),
        ({"allowed_ip_sans_cidr": ["10.0.0.0/33"]}, "allowed_ip_sans_cidr"),
        ({"allowed_ip_sans_cidr": ["10.0.0.1"]}, "allowed_ip_sans_cidr"),
        ({"allowed_other_sans": ["1.2.3"]}, "allowed_other_sans[0]"),
        ({"allowed_other_sans": ["*", "1.2.3;IA5:x"]}, "allowed_other_sans[1]"),
        ({"allowed_other_sans": ["x;UTF8:*"]}, "allowed_other_sans[0]"),
        ({"country": ["Germany"]}, "country[0]"),
        ({"country": ["de"]}, "country[0]"),
        ({"organization": ["x" * 65]}, "organization[0]"),
        ({"ou": ["a\x00b"]}, "ou[0]"),
        ({"policy_identifiers": ["x"]}, "policy_identifiers[0].oid"),
        ({"policy_identifiers": ["1.2.3", {"oid": "1.2.3"}]}, "policy_identifiers[1]"),
        (
            {"policy_identifiers": [{"oid": "1.2.3", "notice": "x" * 201}]},
            "policy_identifiers[0].notice",
        ),
        ({"policy_identifiers": "[{"}, "policy_identifiers"),
        ({"issuer_ref": "a\nb"}, "issuer_ref"),
        ({"spiffe": "own", "allowed_uri_sans": ["spiffe://example.org/*"]}, "allowed_uri_sans"),
        ({"spiffe": "matching"}, "allowed_uri_sans"),
        ({"spiffe": "matching", "allowed_uri_sans": ["https://a.test/*"]}, "allowed_uri_sans"),
        ({"spiffe": "own", "server_flag": False}, "server_flag"),
        ({"spiffe": "own", "client_flag": False}, "client_flag"),
        ({"spiffe": "own", "key_usage": ["KeyAgreement"]}, "key_usage"),
        ({"spiffe": "own", "key_usage": []}, "key_usage"),
    ],
)
def test_role_that_cannot_work_is_refused(fields: dict[str, object], field: str) -> None:
    assert set(_violations(**fields)) == {field}


@pytest.mark.parametrize("document", ["", "[]", "null", "{", "3", '{"name":"a"', b"\xff"])
def test_text_that_is_no_role_document_is_refused(document: str | bytes) -> None:
    with pytest.raises(InvalidRole):
        Role.from_document(document)


def test_both_tls_usages_may_also_come_by_name_or_oid() -> None:
    role = make_role(
        spiffe="own", server_flag=False, client_flag=False,
        ext_key_usage="ServerAuth", ext_key_usage_oids="1.3.6.1.5.5.7.3.2",
    )  # fmt: skip
    assert role.has_both_tls_usages


# Warnings


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"callers": []}, "nobody"),
        ({"callers": [{}]}, "every authenticated caller"),
        ({"allowed_uri_sans": ["spiffe://example.com/*"]}, "trust domain example.com"),
        ({"spiffe": "matching", "allowed_uri_sans": ["spiffe://example.com/*"]}, "grants nothing"),
        ({"allowed_uri_sans": ["*"]}, "every SPIFFE ID"),
        ({"allowed_domains": ["a.test"]}, "no effect"),
        ({"allowed_domains": ["*.a.test"], "allow_bare_domains": True}, "no glob"),
        ({"allow_any_name": True}, "every DNS name"),
        ({"key_type": "ed25519", "key_bits": 256}, "no effect"),
        ({"no_store": True}, "no record"),
    ],
)
def test_role_that_is_probably_not_meant_so_warns(fields: dict[str, object], part: str) -> None:
    assert any(part in warning for warning in make_role(**fields).warnings(TRUST_DOMAIN))


def test_sound_role_has_no_warnings() -> None:
    role = make_role(spiffe="own", callers=[{"namespace": "shop"}])
    assert role.warnings(TRUST_DOMAIN) == ()


# Durations


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("72h", 259_200), ("1h30m", 5_400), ("1d", 86_400), ("3600s", 3_600), ("3600", 3_600),
     (3600, 3_600), ("2160h0m0s", 7_776_000), (timedelta(minutes=1), 60), ("0", 0)],
)  # fmt: skip
def test_durations(value: object, seconds: int) -> None:
    duration = parse_duration(value)
    assert duration == timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration
