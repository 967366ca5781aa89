"""URIs by role: SPIFFE IDs above all, patterns, templates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest, InvalidRole, PolicyViolated
from meshmint_server.policy import Caller, Names
from meshmint_server.policy.names import MalformedName
from meshmint_server.policy.uris import parse_pattern, parse_uri
from support.policy import TRUST_DOMAIN, decide_names, make_caller, make_role, violations_of

OWN = "spiffe://example.org/ns/shop/sa/cart"


def _uris(role_fields: dict[str, object], *uris: str, caller: Caller | None = None) -> list[str]:
    role = make_role(**{"require_cn": False, **role_fields})
    decision = decide_names(role, Names(uris=uris), caller=caller)
    return [str(san.value) for san in decision.grant.sans]


# Patterns


@pytest.mark.parametrize(
    ("pattern", "uri", "is_allowed"),
    [
        ("spiffe://example.org/*", "spiffe://example.org/a", True),
        ("spiffe://example.org/*", "spiffe://example.org/a/b/c", True),
        ("spiffe://example.org/*", "spiffe://example.org", False),
        ("spiffe://example.org/*", "spiffe://example.com/a", False),
        ("spiffe://example.org/*", "spiffe://example.org.evil.net/a", False),
        ("spiffe://example.org/ns/*/sa/x", "spiffe://example.org/ns/a/sa/x", True),
        ("spiffe://example.org/ns/*/sa/x", "spiffe://example.org/ns/a/b/sa/x", False),
        ("spiffe://example.org/ns/*/sa/*", "spiffe://example.org/ns/a/sa/x/y", True),
        ("spiffe://example.org/ns/*/sa/*", "spiffe://example.org/ns/a/sa", False),
        ("spiffe://example.org/ns/team-*", "spiffe://example.org/ns/team-a", True),
        ("spiffe://example.org/ns/team-*", "spiffe://example.org/ns/team-a/b", False),
        ("spiffe://example.org/ns/team-*", "spiffe://example.org/ns/Team-a", False),
        ("spiffe://example.org/a", "spiffe://example.org/a", True),
        ("spiffe://example.org/a", "spiffe://example.org/a/b", False),
        ("*", "spiffe://example.org/a", True),
        ("*", "spiffe://example.com/a", False),
        ("*", "https://example.com/a?b#c", True),
        ("https://example.com/*", "https://example.com/a/b", True),
        ("https://example.com/*", "HTTPS://EXAMPLE.com/a", True),
        ("https://Example.COM/*", "https://example.com/a", True),
        ("https://example.com/*", "https://example.com", False),
        ("https://example.com/*", "https://example.com/", False),
        ("https://example.com/*", "https://example.com:8443/a", False),
        ("https://example.com/*", "http://example.com/a", False),
        ("https://example.com/*", "https://example.com/a?q=1", False),
        ("https://example.com/*", "https://example.com/a#f", False),
        ("https://example.com/a?q=*", "https://example.com/a?q=1", True),
        ("https://example.com/a?q=*", "https://example.com/a", False),
        ("https://*.example.com/a", "https://x.example.com/a", True),
        ("https://*.example.com/a", "https://x.y.example.com/a", False),
        ("https://*.example.com/a", "https://evil.net/x.example.com/a", False),
        ("https://example.com:8443/a", "https://example.com:8443/a", True),
        ("urn:example:*", "urn:example:thing", True),
        ("urn:example:*", "urn:other:thing", False),
        ("https://example.com/a*b", "https://example.com/axxb", True),
        ("https://example.com/a*b", "https://example.com/ax/xb", False),
    ],
)
def test_patterns_are_compared_piece_by_piece(pattern: str, uri: str, is_allowed: bool) -> None:
    assert parse_pattern(pattern).allows(parse_uri(uri), TRUST_DOMAIN) is is_allowed


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://example.org/../x",
        "spiffe://example.org/./x",
        "spiffe://example.org/%2e%2e/x",
        "spiffe://example.org/x?q=1",
        "spiffe://example.org/x#f",
        "spiffe://example.org:443/x",
        "spiffe://EXAMPLE.org/x",
        "SPIFFE://example.org/x",
        "spiffe://example.org/x\n",
        "spiffe://example.org\n/x",
        "spiffe://example.org/x/",
        "spiffe://example.org//x",
        "spiffe://u@example.org/x",
        "spiffe:example.org/x",
        "https://user@example.com/",
        "https://example.com/../x",
        "https://example.com/%2E%2e/x",
        "https://example.com/pub/%2e%2e%2fadmin",
        "https://example.com/pub%5Cadmin",
        "https://example.com/a%2fb",
        "https://example.com//x",
        "https://example.com/\x00",
        "https://example.com/a b",
        "https://example.com/\u00fc",
        "https://b\u00fccher.example/",
        "https://example.com/%zz",
        "https://example.com:99999/",
        "https://*.example.com/",
        "https:///x",
        "https://",
        "https:",
        "https",
        "",
        "//example.com/x",
        "1https://example.com/",
        "https://example.com/x\n",
        "https://example.com/" + "a" * 2048,
        "https://a..b/",
        "https://[::1/",
        "https://example.com/[a]",
        'https://example.com/"',
    ],
)
def test_malformed_uri_is_refused_whatever_the_role_allows(uri: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        _uris({"allowed_uri_sans": ["*", "spiffe://example.org/*"]}, uri)
    assert set(violations_of(caught.value)) == {"names.uris[0]"}


@pytest.mark.parametrize(
    "pattern",
    [
        "spiffe://*",
        "spiffe://*/x",
        "spiffe://*.example.org/x",
        "spiffe://example.org",
        "spiffe://example.org/",
        "spiffe://example.org*",
        "spiffe://example.org/a//b",
        "spiffe://example.org/../*",
        "spiffe://example.org/a?b",
        "spiffe://Example.org/*",
        "spiffe:*",
        "SPIFFE://example.org/*",
        "*/x",
        "*://example.com/",
        "http*://example.com/",
        "https://u@example.com/*",
        "https://example.com/../*",
        "example.com",
        "spiffe://{{ trust_domain }}/*",  # without allowed_uri_sans_template
    ],
)
def test_pattern_that_says_no_clear_thing_is_refused_with_the_role(pattern: str) -> None:
    with pytest.raises(InvalidRole) as caught:
        make_role(allowed_uri_sans=[pattern])
    assert "allowed_uri_sans[0]" in violations_of(caught.value)


@given(st.text(max_size=60))
def test_whatever_is_accepted_as_uri_is_canonical(tail: str) -> None:
    try:
        uri = parse_uri("https://" + tail)
    except MalformedName:
        return
    assert parse_uri(str(uri)) == uri
    assert ".." not in str(uri).split("?")[0].split("#")[0].split("/")[3:]
    assert str(uri).isascii()
    assert str(uri).isprintable()


# spiffe: own


def test_own_accepts_the_callers_spiffe_id_spelled_out() -> None:
    assert _uris({"spiffe": "own"}, OWN) == [OWN]


@pytest.mark.parametrize(
    "uri", ["spiffe://example.org/ns/shop/sa/other", "spiffe://example.com/x", "https://a.test/"]
)
def test_own_refuses_every_other_uri(uri: str) -> None:
    with pytest.raises(PolicyViolated) as caught:
        _uris({"spiffe": "own"}, uri)
    assert set(violations_of(caught.value)) == {"names.uris[0]"}
    with pytest.raises(PolicyViolated):
        _uris({"spiffe": "own"}, OWN, uri)


def test_own_needs_a_caller_with_a_spiffe_id() -> None:
    with pytest.raises(PolicyViolated, match="has no SPIFFE ID"):
        _uris({"spiffe": "own"}, caller=make_caller(spiffe_id=None))


@pytest.mark.parametrize("own", ["spiffe://example.com/x", "spiffe://example.org"])
@pytest.mark.parametrize(
    "fields",
    [{"spiffe": "own"}, {"spiffe": "matching", "allowed_uri_sans": ["*"]}],
)
def test_svid_roles_stay_in_the_trust_domain_and_need_a_path(
    fields: dict[str, object], own: str
) -> None:
    with pytest.raises(PolicyViolated):
        _uris(fields, caller=make_caller(spiffe_id=own))


def test_own_role_grants_names_of_other_kinds_by_its_domains() -> None:
    role = make_role(spiffe="own", allowed_domains=["shop.svc"], allow_subdomains=True)
    decision = decide_names(role, Names(dns_names=("cart.shop.svc",)))
    assert [str(san.value) for san in decision.grant.sans] == ["cart.shop.svc", OWN]


# spiffe: matching

MATCHING = {"spiffe": "matching", "allowed_uri_sans": ["spiffe://example.org/ns/shop/*"]}


def test_matching_grants_one_spiffe_id_by_pattern() -> None:
    uri = "spiffe://example.org/ns/shop/sa/other"
    assert _uris(MATCHING, uri) == [uri]
    assert _uris(MATCHING, uri, uri) == [uri]


def test_matching_fills_in_the_callers_own_if_allowed() -> None:
    assert _uris(MATCHING) == [OWN]
    with pytest.raises(PolicyViolated, match="ask for the SPIFFE ID"):
        _uris(MATCHING, caller=make_caller(spiffe_id="spiffe://example.org/ns/web/sa/x"))
    with pytest.raises(PolicyViolated, match="ask for the SPIFFE ID"):
        _uris(MATCHING, caller=make_caller(spiffe_id=None))


@pytest.mark.parametrize(
    "uris",
    [
        (OWN, "spiffe://example.org/ns/shop/sa/other"),
        (OWN, "https://a.test/"),
        ("https://a.test/",),
        ("spiffe://example.org/ns/web/sa/x",),
        ("spiffe://example.com/ns/shop/sa/x",),
    ],
)
def test_matching_grants_nothing_else(uris: tuple[str, ...]) -> None:
    with pytest.raises(PolicyViolated):
        _uris(
            {**MATCHING, "allowed_uri_sans": [*MATCHING["allowed_uri_sans"], "https://a.test/"]},
            *uris,
        )


# spiffe: none


def test_none_allows_no_uri_without_patterns() -> None:
    with pytest.raises(PolicyViolated, match="allows no URI"):
        _uris({}, "https://a.test/")


def test_none_grants_uris_by_pattern_and_a_spiffe_id_alone() -> None:
    fields = {"allowed_uri_sans": ["spiffe://example.com/*", "https://a.test/*"]}
    assert _uris(fields, "https://a.test/x", "https://a.test/y") == [
        "https://a.test/x",
        "https://a.test/y",
    ]
    # A role written for Vault does what it says, also in another trust domain.
    assert _uris(fields, "spiffe://example.com/x") == ["spiffe://example.com/x"]
    for pair in (
        ("spiffe://example.com/x", "spiffe://example.com/y"),
        ("spiffe://example.com/x", "https://a.test/x"),
    ):
        with pytest.raises(PolicyViolated, match="exactly one URI"):
            _uris(fields, *pair)


@pytest.mark.parametrize(
    "fields",
    [
        {"server_flag": False},
        {"client_flag": False},
        {"key_usage": "KeyAgreement"},
        {"key_usage": []},
    ],
)
def test_spiffe_id_in_a_none_role_needs_what_an_x509_svid_needs(fields: dict[str, object]) -> None:
    with pytest.raises(PolicyViolated, match="needs DigitalSignature"):
        _uris({"allowed_uri_sans": ["spiffe://example.org/*"], **fields}, OWN)


def test_certificate_with_a_spiffe_id_always_says_that_it_is_no_ca() -> None:
    role = make_role(
        require_cn=False, allowed_uri_sans=["spiffe://example.org/*", "https://a.test/"]
    )
    assert decide_names(role, Names(uris=(OWN,))).grant.basic_constraints
    assert not decide_names(role, Names(uris=("https://a.test/",))).grant.basic_constraints


# Templates

TEMPLATED = {
    "spiffe": "matching",
    "allowed_uri_sans_template": True,
    "allowed_uri_sans": [
        "spiffe://{{ trust_domain }}/ns/{{ kubernetes.namespace }}/job/*",
        "{{spiffe_id}}",
        "{{ spiffe_id }}/sub/*",
        "spiffe://example.org/team/{{ claims.team }}/*",
    ],
}


@pytest.mark.parametrize(
    ("uri", "is_granted"),
    [
        ("spiffe://example.org/ns/shop/job/x/y", True),
        ("spiffe://example.org/ns/web/job/x", False),
        (OWN, True),
        (OWN + "/sub/x", True),
        (OWN + "/x", False),
        ("spiffe://example.org/team/red/x", False),  # the caller has no such claim
    ],
)
def test_uri_templates_are_rendered_over_the_caller(uri: str, is_granted: bool) -> None:
    if is_granted:
        assert _uris(TEMPLATED, uri) == [uri]
    else:
        with pytest.raises(PolicyViolated):
            _uris(TEMPLATED, uri)


@pytest.mark.parametrize(
    "value",
    [
        "*",
        "r*",
        "a/b",
        "..",
        ".",
        "",
        "a b",
        "red\n",
        "%2e",
        "a?b",
        "a#b",
        "a:b",
        ("red",),
        ("a", "b"),
    ],
)
def test_value_that_would_change_the_pattern_grants_nothing(value: str | tuple[str, ...]) -> None:
    caller = make_caller(attributes={"claims.team": value}, spiffe_id=None)
    team = value if isinstance(value, str) else value[0]
    for uri in ("spiffe://example.org/team/red/x", f"spiffe://example.org/team/{team}/x"):
        with pytest.raises((PolicyViolated, InvalidRequest)):
            _uris(TEMPLATED, uri, caller=caller)


def test_globs_in_values_can_be_allowed() -> None:
    caller = make_caller(attributes={"claims.team": "r*"}, spiffe_id=None)
    fields = {**TEMPLATED, "allow_globs_in_identity_templates": True}
    uri = "spiffe://example.org/team/red/x"
    assert _uris(fields, uri, caller=caller) == [uri]
    with pytest.raises(PolicyViolated):
        _uris(fields, "spiffe://example.org/team/blue/x", caller=caller)


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "}}",
        "{{ }}",
        "spiffe://example.org/{{ kubernetes.namespace",
        "spiffe://example.org/kubernetes.namespace }}",
        "spiffe://example.org/{ kubernetes.namespace }",
        "spiffe://example.org/{{ kubernetes.namespace | upper }}",
        "spiffe://example.org/{{ kubernetes.namespace() }}",
        "spiffe://example.org/{{ namespace }}",
        "spiffe://example.org/{{ kubernetes. }}",
        "spiffe://example.org/{{ identity.entity.name }}",
        "spiffe://example.org/{{{ claims.x }}}",
        "spiffe://example.org/x/{{ spiffe_id }}",
        "{{ spiffe_id }}x?",
        "{% if x %}",
        "{{ kubernetes.namespace }}",
    ],
)
def test_template_that_can_never_be_rendered_is_refused_with_the_role(template: str) -> None:
    with pytest.raises(InvalidRole) as caught:
        make_role(allowed_uri_sans_template=True, allowed_uri_sans=["https://a.test/", template])
    assert set(violations_of(caught.value)) == {"allowed_uri_sans[1]"}


def test_vaults_identity_templates_are_refused_with_the_spelling_to_use() -> None:
    with pytest.raises(InvalidRole, match=r"\{\{ kubernetes.namespace \}\}"):
        make_role(
            allowed_uri_sans_template=True,
            allowed_uri_sans=[
                "spiffe://a/{{identity.entity.aliases.k8s_1.metadata.service_account_namespace}}"
            ],
        )


@pytest.mark.parametrize(
    ("entry", "attributes", "name", "is_granted"),
    [
        ("{{ kubernetes.namespace }}.svc", {}, "cart.shop.svc", True),
        ("{{ kubernetes.namespace }}.svc", {}, "cart.web.svc", False),
        ("{{ claims.host }}.svc", {"claims.host": "*"}, "cart.x.svc", False),
        ("{{ claims.host }}.svc", {}, "cart..svc", False),
        ("{{ claims.host }}.svc", {"claims.host": ""}, "a.svc", False),
        (
            "{{ claims.host }}",
            {"claims.host": "B\u00fccher.example"},
            "a.xn--bcher-kva.example",
            True,
        ),
        ("{{ claims.mail }}", {"claims.mail": "me@example.com"}, "me@example.com", True),
        ("{{ claims.mail }}.net", {"claims.mail": "me@example.com"}, "me@example.com.net", False),
        ("static.svc", {}, "a.static.svc", True),
    ],
)
def test_domain_templates(
    entry: str, attributes: dict[str, str], name: str, is_granted: bool
) -> None:
    role = make_role(
        require_cn=False,
        allowed_domains=[entry],
        allowed_domains_template=True,
        allow_subdomains=True,
        allow_bare_domains=True,
        allow_glob_domains=True,
    )
    caller = make_caller(attributes=attributes)
    names = Names(email_addresses=(name,)) if "@" in name else Names(dns_names=(name,))
    if is_granted:
        assert decide_names(role, names, caller=caller).grant.sans
    else:
        with pytest.raises((PolicyViolated, InvalidRequest)):
            decide_names(role, names, caller=caller)
