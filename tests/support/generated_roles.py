"""Strategies for roles, callers and requests that meet often enough to be granted."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from meshmint_server.policy import KeyAlgorithm, Names, OtherName

OIDS = ["1.2.3.4", "1.3.6.1.4.1.311.20.2.3"]

# Names that are asked for

_label = st.sampled_from(["a", "b", "shop", "web", "*", "under_score", "B\u00dccher", "x1", "SHOP"])
_domain = st.sampled_from(
    ["example.com", "Example.COM", "a.example.com", "shop.svc", "b\u00fccher.example", "localhost",
     "localdomain", "example.net"]
)  # fmt: skip
dns_names = st.builds(
    lambda labels, domain: ".".join([*labels, domain]), st.lists(_label, max_size=2), _domain
)
emails = st.builds(
    lambda user, host: f"{user}@{host}", st.sampled_from(["ops", "Ops", "me"]), dns_names
)
addresses = st.sampled_from(["10.0.0.1", "10.9.9.9", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1"])
_segment = st.sampled_from(["ns", "ns", "shop", "web", "sa", "sa", "cart", "x", "..", "a*", "A"])
_path = st.lists(_segment, max_size=4).map(lambda parts: "".join("/" + part for part in parts))
_own_uris = st.sampled_from(
    ["spiffe://example.org/ns/shop/sa/cart", "spiffe://example.org/ns/shop/sa/x",
     "spiffe://example.org/ns/web/sa/x/y", "spiffe://example.com/ns/shop"]
)  # fmt: skip
_other_uris = st.builds(
    lambda authority, path, tail: authority + path + tail,
    st.sampled_from(
        ["spiffe://example.org", "spiffe://example.com", "spiffe://Example.org", "https://a.test",
         "https://x.a.test", "HTTPS://A.test"]
    ),
    _path,
    st.sampled_from([""] * 12 + ["?q", "#f", "/", "\n"]),
)  # fmt: skip
uris = _own_uris | _other_uris
common_names = st.just("My Device 7") | dns_names | dns_names | emails | addresses

_name_kinds: dict[str, st.SearchStrategy[Any]] = {
    "common_name": common_names,
    "dns_names": st.lists(dns_names, min_size=1, max_size=2).map(tuple),
    "ip_addresses": st.tuples(addresses),
    "uris": st.lists(uris, min_size=1, max_size=2).map(tuple),
    "email_addresses": st.tuples(emails),
    "other_names": st.tuples(
        st.builds(OtherName, st.sampled_from(OIDS), st.sampled_from(["ax", "x@b"]))
    ),
    "subject_serial_number": st.sampled_from(["7", "dev-1"]),
    "user_ids": st.sampled_from([("alice",), ("Bob",)]),
    "exclude_common_name_from_sans": st.booleans(),
}


@st.composite
def _names(draw: st.DrawFn) -> Names:
    kinds = draw(st.lists(st.sampled_from(sorted(_name_kinds)), max_size=3, unique=True))
    return Names(**{kind: draw(_name_kinds[kind]) for kind in kinds})


names = _names()
key_algorithms = st.sampled_from(list(KeyAlgorithm))
ttls = st.none() | st.sampled_from([1, 59, 3_600, 86_400, 10_000_000])
starts = st.none() | st.none() | st.integers(-4_000, 4_000)

# Callers

_facts = st.sampled_from(
    ["shop", "shop", "web", "a", "*", "a*", "a/b", "..", "", "x.y", "ops@example.com",
     "B\u00fccher", ("shop",), ("shop", "web")]
)  # fmt: skip


@st.composite
def callers(draw: st.DrawFn) -> tuple[dict[str, Any], str | None]:
    """Attributes, and a SPIFFE ID or None."""
    attributes = st.fixed_dictionaries(
        {"kubernetes.namespace": _facts}, optional={"claims.team": _facts, "claims.host": _facts}
    )
    own = st.sampled_from(
        ["spiffe://example.org/ns/shop/sa/cart", "spiffe://example.org/ns/web/sa/x",
         "spiffe://example.org", "spiffe://example.com/ns/shop/sa/cart", None]
    )  # fmt: skip
    return draw(attributes), draw(own)


# Roles

_domain_entries = st.sampled_from(
    ["example.com", "EXAMPLE.com", "*.example.com", "b\u00fccher.example", "svc", "ops@example.com"]
)
_domain_globs = st.sampled_from(["a*.example.com", "*@example.com", "*", "*.Example.com"])
_domain_templates = st.sampled_from(
    ["{{ kubernetes.namespace }}.svc", "{{claims.host}}.example", "{{ claims.team }}",
     "{{ claims.host }}"]
)  # fmt: skip
_uri_patterns = st.sampled_from(
    ["spiffe://example.org/*", "spiffe://example.org/ns/*/sa/*", "spiffe://example.org/ns/shop/sa/x",
     "spiffe://example.com/*", "https://a.test/*", "https://*.a.test/ns/*", "*",
     "spiffe://example.org/ns/s*/sa/c*"]
)  # fmt: skip
_uri_templates = st.sampled_from(
    ["spiffe://{{ trust_domain }}/ns/{{ kubernetes.namespace }}/*", "{{spiffe_id}}",
     "{{ spiffe_id }}/*", "https://a.test/{{ claims.team }}/*"]
)  # fmt: skip
_key_usages = st.sampled_from(
    ["DigitalSignature", "ContentCommitment", "KeyEncipherment", "DataEncipherment", "KeyAgreement"]
)
_FLAGS = (
    "allow_localhost", "allow_bare_domains", "allow_subdomains", "allow_glob_domains",
    "allow_wildcard_certificates", "enforce_hostnames", "allow_ip_sans",
    "allowed_domains_template", "allowed_uri_sans_template", "allow_globs_in_identity_templates",
    "use_csr_sans", "use_csr_common_name", "basic_constraints_valid_for_non_ca",
)  # fmt: skip
_RARE_FLAGS = ("allow_any_name", "require_cn", "code_signing_flag", "email_protection_flag")


@st.composite
def roles(draw: st.DrawFn) -> dict[str, Any]:
    """Role documents, durations in seconds; a few of them are refused when read."""
    flags = {field: draw(st.booleans()) for field in _FLAGS}
    rare = {field: draw(st.integers(0, 4)) == 0 for field in _RARE_FLAGS}
    spiffe = draw(st.sampled_from(["own", "matching", "none", "none"]))
    usual = {
        field: spiffe != "none" or draw(st.integers(0, 5)) != 0
        for field in ("server_flag", "client_flag")
    }
    domains = _domain_entries | (_domain_globs if flags["allow_glob_domains"] else st.nothing())
    if flags["allowed_domains_template"]:
        domains |= _domain_templates
    patterns = _uri_patterns | (
        _uri_templates if flags["allowed_uri_sans_template"] else st.nothing()
    )
    document: dict[str, Any] = {
        "name": "generated",
        "callers": [{}],
        "spiffe": spiffe,
        **flags,
        **rare,
        **usual,
        "allowed_domains": draw(st.lists(domains, max_size=3, unique=True)),
        "allowed_uri_sans": [],
        "allowed_ip_sans_cidr": draw(
            st.lists(st.sampled_from(["10.0.0.0/8", "2001:db8::/32"]), max_size=2, unique=True)
        ),
        "allowed_other_sans": draw(
            st.sampled_from([[], ["*"], [f"{OIDS[0]};UTF8:a*", f"{OIDS[1]};UTF8:*@b"]])
        ),
        "allowed_serial_numbers": draw(st.sampled_from([[], ["dev-*"], ["7"]])),
        "allowed_user_ids": draw(st.sampled_from([[], ["Alice"], ["a*"]])),
        "key_type": draw(st.sampled_from(["ec", "rsa", "ed25519", "any"])),
        "key_usage": ["DigitalSignature", "KeyAgreement", "KeyEncipherment"],
        "ext_key_usage": draw(
            st.sampled_from([[], [], [], ["TimeStamping"], ["ServerAuth"], ["OCSPSigning"]])
        ),
        "cn_validations": draw(
            st.sampled_from([["email", "hostname"], ["hostname"], ["email"], ["disabled"]])
        ),
        "organization": draw(st.sampled_from([[], ["Example, Inc."]])),
        "country": draw(st.sampled_from([[], ["DE"]])),
        "not_before_duration": draw(st.sampled_from([0, 30])),
    }
    sizes = {"rsa": [0, 2048, 3072, 4096], "ec": [0, 256, 384, 521]}
    document["key_bits"] = draw(st.sampled_from(sizes.get(document["key_type"], [0])))
    if spiffe != "own":
        document["allowed_uri_sans"] = draw(st.lists(patterns, max_size=3, unique=True))
    if spiffe == "matching":
        document["allowed_uri_sans"].append("spiffe://example.org/ns/s*/sa/x")
    if draw(st.booleans()):
        document["key_usage"] = draw(st.lists(_key_usages, max_size=3, unique=True))
        if spiffe != "none" and "DigitalSignature" not in document["key_usage"]:
            document["key_usage"].append("DigitalSignature")
    if draw(st.booleans()):
        document["max_ttl"] = draw(st.sampled_from([60, 3_600, 10_000_000]))
    return document
