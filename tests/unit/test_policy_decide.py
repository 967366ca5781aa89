"""What a role as a whole grants: the decision's every part, and all violations at once."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from meshmint_server.errors import InvalidRequest, PolicyViolated
from meshmint_server.policy import CertificateRequest, KeyAlgorithm, Names, Validity, decide
from support.policy import BOUNDS, NOW, decide_names, make_caller, make_role, violations_of


def test_own_role_fills_in_the_callers_spiffe_id_and_nothing_else() -> None:
    decision = decide_names(make_role(spiffe="own", ttl="1h"))
    assert [san.value for san in decision.grant.sans] == ["spiffe://example.org/ns/shop/sa/cart"]
    assert str(decision.grant.spiffe_id) == "spiffe://example.org/ns/shop/sa/cart"
    assert decision.grant.subject == x509.Name([])
    assert decision.not_before == NOW.replace(microsecond=0) - timedelta(seconds=30)
    assert decision.not_after == NOW.replace(microsecond=0) + timedelta(hours=1)
    assert decision.key is KeyAlgorithm.EC_P256
    assert decision.grant.key_usage is not None
    assert decision.grant.key_usage.digital_signature
    assert not decision.grant.key_usage.key_encipherment  # an EC key cannot have it
    assert decision.grant.ext_key_usages == (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    assert decision.grant.basic_constraints
    assert decision.grant.is_recorded
    assert decision.grant.issuer_ref is None
    assert decision.warnings == ()


def test_role_written_for_vault_does_what_it_says_there() -> None:
    role = make_role(
        allowed_domains="example.com,internal.example.com",
        allow_subdomains="true",
        max_ttl="720h",
        key_type="ec",
        key_bits="256",
        require_cn="false",
        allowed_uri_sans="spiffe://example.com/*",
    )
    names = Names(
        common_name="cart.example.com",
        dns_names=("a.b.internal.example.com",),
        uris=("spiffe://example.com/shop/cart",),
    )
    decision = decide_names(role, names)
    assert [str(san.value) for san in decision.grant.sans] == [
        "cart.example.com",
        "a.b.internal.example.com",
        "spiffe://example.com/shop/cart",
    ]
    assert decision.grant.subject.rfc4514_string() == "CN=cart.example.com"
    with pytest.raises(PolicyViolated):
        decide_names(role, Names(uris=("spiffe://example.net/x",)))


def test_all_violations_come_at_once() -> None:
    role = make_role(allowed_domains=["example.com"], allow_subdomains=True, require_cn=False)
    request = CertificateRequest(
        names=Names(dns_names=("a.example.com", "a.example.net"), uris=("https://example.com/",)),
        validity=Validity(not_after=NOW + timedelta(days=400)),
        key_algorithm=KeyAlgorithm.RSA_2048,
    )
    with pytest.raises(PolicyViolated) as caught:
        decide(role, make_caller(), request, now=NOW, bounds=BOUNDS)
    assert set(violations_of(caught.value)) == {
        "names.dns_names[1]",
        "names.uris[0]",
        "validity.not_after",
        "key_algorithm",
    }


def test_malformed_names_go_before_names_outside_the_role() -> None:
    role = make_role(allowed_domains=["example.com"], allow_subdomains=True, require_cn=False)
    with pytest.raises(InvalidRequest) as caught:
        decide_names(role, Names(dns_names=("a..example.com", "a.example.net")))
    assert set(violations_of(caught.value)) == {"names.dns_names[0]"}
