"""Generated cases about one subject at a time: a role, a caller, a request.

Everything beside the subject is permissive, so that most cases hang on it alone:
half of them are granted, the others miss narrowly.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from meshmint_server.policy import CertificateRequest, Names, Validity
from support.generated_roles import callers
from support.policy import NOW

Case = tuple[dict[str, Any], tuple[dict[str, Any], str | None], CertificateRequest]

_BASE: dict[str, Any] = {
    "name": "generated",
    "callers": [{}],
    "key_type": "ec",
    "require_cn": False,
    "allow_localhost": False,
}
_PLAIN_CALLER = ({"kubernetes.namespace": "shop"}, "spiffe://example.org/ns/shop/sa/cart")
_usually = st.sampled_from([True, True, True, False])


@st.composite
def domain_cases(draw: st.DrawFn) -> Case:
    """One DNS name, e-mail address or common name, made from an entry of the role."""
    is_template = draw(st.booleans())
    entries = st.sampled_from(
        ["example.com", "EXAMPLE.com", "b\u00fccher.example", "*.example.com", "a*.example.com",
         "ops@example.com", "*@example.com", "localhost"]
    )  # fmt: skip
    templates = st.sampled_from(
        ["{{ kubernetes.namespace }}.svc", "{{claims.host}}.example.com", "{{ claims.team }}"]
    )
    entry = draw(templates if is_template else entries)
    fact = draw(
        st.sampled_from(["shop", "shop", "x.y", "*", "a/b", "..", "", "ops@example.com", ("shop",)])
    )
    named = ("kubernetes.namespace", "claims.team", "claims.host")
    caller: tuple[dict[str, Any], str | None] = (dict.fromkeys(named, fact), None)
    document = {
        **_BASE,
        "allowed_domains": [entry],
        "allowed_domains_template": is_template,
        "allow_glob_domains": draw(st.booleans()) or "*" in entry.removeprefix("*."),
        **{
            field: draw(st.booleans())
            for field in ("allow_bare_domains", "allow_subdomains", "allow_localhost")
        },
        **{field: draw(_usually) for field in ("allow_wildcard_certificates", "enforce_hostnames")},
        "allow_globs_in_identity_templates": draw(st.booleans()),
        "cn_validations": draw(
            st.sampled_from([["email", "hostname"], ["hostname"], ["email"], ["disabled"]])
        ),
    }
    value = fact if isinstance(fact, str) else fact[0]
    domain = draw(st.sampled_from([entry, *entry.split("@")[1:], "example.com"]))
    if is_template:
        domain = value.join(("", domain.partition("}}")[2]))
    domain = domain.replace("a*", draw(st.sampled_from(["a1", "a.b", "b"])))
    form = draw(
        st.sampled_from(
            [
                "{}",
                "{}",
                "x.{}",
                "x.y.{}",
                "*.{}",
                "*.x.{}",
                "bad{}",
                "x.bad{}",
                "under_score.{}",
                "{}.net",
                "ops@{}",
                "ops@x.{}",
                "me@{}",
            ]
        )
    )
    name = form.format(domain)
    if draw(st.booleans()):
        return document, caller, CertificateRequest(names=Names(common_name=name))
    is_email = "@" in name
    names = Names(email_addresses=(name,)) if is_email else Names(dns_names=(name,))
    return document, caller, CertificateRequest(names=names)


@st.composite
def uri_cases(draw: st.DrawFn) -> Case:
    """One URI, seldom two, near the patterns of the role."""
    spiffe = draw(st.sampled_from(["own", "matching", "none", "none"]))
    is_template = draw(st.booleans())
    patterns = st.sampled_from(
        ["spiffe://example.org/*", "spiffe://example.org/ns/*/sa/*", "spiffe://example.org/ns/shop",
         "spiffe://example.org/ns/s*", "spiffe://example.com/*", "https://a.test/*",
         "https://*.a.test/ns/*", "*"]
    )  # fmt: skip
    templates = st.sampled_from(
        ["spiffe://{{ trust_domain }}/ns/{{ kubernetes.namespace }}/*", "{{spiffe_id}}",
         "{{ spiffe_id }}/*", "https://a.test/{{ kubernetes.namespace }}/*"]
    )  # fmt: skip
    wanted = draw(st.lists(templates if is_template else patterns, min_size=1, max_size=2))
    caller = draw(callers())
    document: dict[str, Any] = {
        **_BASE,
        "spiffe": spiffe,
        "allowed_uri_sans": [] if spiffe == "own" else wanted,
        "allowed_uri_sans_template": is_template,
        "allow_globs_in_identity_templates": draw(st.booleans()),
        "basic_constraints_valid_for_non_ca": draw(st.booleans()),
    }
    if spiffe == "none":
        document |= {field: draw(_usually) for field in ("server_flag", "client_flag")}
        document["key_usage"] = draw(
            st.sampled_from([["DigitalSignature"], ["DigitalSignature"], ["KeyAgreement"], []])
        )
    namespace = caller[0]["kubernetes.namespace"]
    segment = draw(st.sampled_from(["shop", "x", str(namespace)]))
    uri = st.sampled_from(
        ["spiffe://example.org", "spiffe://example.org/ns", "spiffe://example.org/ns/shop",
         f"spiffe://example.org/ns/{segment}/sa/cart", f"spiffe://example.org/ns/{segment}/x",
         f"spiffe://example.org/ns/{segment}/x/sa/cart", "spiffe://example.com/ns/shop",
         "spiffe://example.org/ns/../x", "https://a.test/", f"https://a.test/{segment}/y",
         "https://x.a.test/ns/y", "https://x.y.a.test/ns/y", "https://a.test/x?q", "https://b.test/x",
         str(caller[1]), f"{caller[1]}/sub"]
    )  # fmt: skip
    uris = draw(st.lists(uri, max_size=2) | st.tuples(uri))
    return document, caller, CertificateRequest(names=Names(uris=tuple(uris)))


@st.composite
def address_cases(draw: st.DrawFn) -> Case:
    """IP addresses, as SAN or common name."""
    document = {
        **_BASE,
        "allow_any_name": True,
        "allow_ip_sans": draw(_usually),
        "allowed_ip_sans_cidr": draw(
            st.lists(st.sampled_from(["10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"]), max_size=2)
        ),
    }
    address = draw(
        st.sampled_from(["10.0.0.1", "11.0.0.1", "192.0.2.7", "2001:db8::1", "::ffff:10.0.0.1"])
    )
    is_cn = draw(st.booleans())
    names = Names(common_name=address) if is_cn else Names(ip_addresses=(address,))
    return document, _PLAIN_CALLER, CertificateRequest(names=names)


@st.composite
def validity_cases(draw: st.DrawFn) -> Case:
    """Every way of asking for a lifetime, around the maximum of role and service."""
    document = {**_BASE, "spiffe": "own", "not_before_duration": draw(st.sampled_from([0, 30]))}
    max_ttl = draw(st.sampled_from([None, 60, 3_600, 3_000_000]))
    if max_ttl:
        document["max_ttl"] = max_ttl
    edge = st.sampled_from([60, 3_600, 768 * 3_600, 3_000_000])
    length = st.builds(lambda base, more: base + more, edge, st.integers(-2, 2))
    end = draw(st.sampled_from(["ttl", "not_after", ""]))
    wanted: dict[str, Any] = {}
    if end:
        span = timedelta(seconds=draw(length))
        wanted[end] = span if end == "ttl" else NOW + span
    if draw(st.booleans()):
        wanted["not_before"] = NOW + timedelta(seconds=draw(st.integers(-4_000, 4_000)))
    return document, _PLAIN_CALLER, CertificateRequest(validity=Validity(**wanted))


@st.composite
def template_cases(draw: st.DrawFn) -> Case:
    """URI templates whose facts try to say more than one segment."""
    fact = draw(
        st.sampled_from(
            ["shop", "x.y", "*", "s*", "a/b", "a/b", "..", "", "a?b", ("shop",), ("a", "b")]
        )
    )
    document = {
        **_BASE,
        "spiffe": draw(st.sampled_from(["matching", "none"])),
        "allowed_uri_sans": ["spiffe://example.org/ns/{{ kubernetes.namespace }}/*"],
        "allowed_uri_sans_template": True,
        "allow_globs_in_identity_templates": draw(st.booleans()),
    }
    said = fact if isinstance(fact, str) else fact[0]
    segment = draw(st.sampled_from([said, said.replace("*", "hop") or "x", "shop"]))
    tail = draw(st.sampled_from(["", "/x", "/x", "/x/y"]))
    names = Names(uris=(f"spiffe://example.org/ns/{segment}{tail}",))
    caller = ({"kubernetes.namespace": fact}, None)
    return document, caller, CertificateRequest(names=names)


@st.composite
def several_uri_cases(draw: st.DrawFn) -> Case:
    """Two URIs, each of which a pattern of the role allows."""
    document = {
        **_BASE,
        "spiffe": draw(st.sampled_from(["matching", "none", "none"])),
        "allowed_uri_sans": ["spiffe://example.org/*", "https://a.test/*"],
    }
    uri = st.sampled_from(
        ["spiffe://example.org/x", "spiffe://example.org/y", "https://a.test/x", "https://a.test/y"]
    )
    uris = draw(st.lists(uri, min_size=1, max_size=2))
    return document, _PLAIN_CALLER, CertificateRequest(names=Names(uris=tuple(uris)))
