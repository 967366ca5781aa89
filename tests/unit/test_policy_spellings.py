"""Spellings and extremes that look harmless and must not get past a role."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import pytest
from cryptography import x509
from meshmint_server.errors import InvalidRequest, InvalidRole, PolicyViolated
from meshmint_server.policy import (
    Bounds,
    Caller,
    CertificateRequest,
    Decision,
    Names,
    Role,
    Validity,
    decide,
)
from meshmint_server.spiffe import TrustDomain

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
TEN_YEARS = timedelta(days=3650)


def make_role(**fields: object) -> Role:
    return Role.from_document(
        {"name": "r", "callers": [{"subject": "*"}], "require_cn": False, **fields}
    )


def ask(
    role: Role,
    names: Names,
    *,
    validity: Validity | None = None,
    claims: dict[str, str] | None = None,
) -> Decision:
    caller = Caller("idp", "eve", {**(claims or {})}, None, NOW + timedelta(hours=1))
    return decide(
        role,
        caller,
        CertificateRequest(names=names, validity=validity or Validity()),
        now=NOW,
        bounds=Bounds(TrustDomain("mesh.example"), timedelta(hours=1), TEN_YEARS),
    )


# Both become "*" by UTS 46: full-width and small asterisk. The last has an ideographic full stop.
@pytest.mark.parametrize("claim", ["\uff0a", "\ufe61", "\uff0a\u3002a", "*"])
@pytest.mark.parametrize("flag", ["allow_glob_domains", "allow_bare_domains", "allow_subdomains"])
def test_no_spelling_of_an_asterisk_in_a_claim_widens_a_template(claim: str, flag: str) -> None:
    role = make_role(
        allowed_domains=["{{ claims.tenant }}.example.com"],
        allowed_domains_template=True,
        **{flag: True},
    )
    for name in ("admin.example.com", "*.example.com", "b.a.example.com", "*.a.example.com"):
        with pytest.raises(PolicyViolated):
            ask(role, Names(dns_names=(name,)), claims={"claims.tenant": claim})


def test_a_wildcard_is_asked_for_with_the_ascii_asterisk_alone() -> None:
    with pytest.raises(InvalidRequest, match="ASCII"):
        ask(make_role(allow_any_name=True), Names(dns_names=("\uff0a.example.com",)))


def test_an_ipv4_mapped_address_is_judged_and_written_as_the_ipv4_address_it_stands_for() -> None:
    names = Names(ip_addresses=("::ffff:10.0.0.1",))
    with pytest.raises(PolicyViolated, match=r"10\.0\.0\.1"):
        ask(make_role(allowed_ip_sans_cidr="::/0"), names)
    granted = ask(make_role(allowed_ip_sans_cidr="10.0.0.0/8"), names)
    assert granted.grant.sans == (x509.IPAddress(IPv4Address("10.0.0.1")),)


@pytest.mark.parametrize("common_name", ["é " * 22 + "é", "日 " * 16 + "日"])
def test_a_common_name_too_long_in_utf8_is_the_callers_mistake(common_name: str) -> None:
    with pytest.raises(InvalidRequest, match="common name has at most 64"):
        ask(make_role(cn_validations="disabled"), Names(common_name=common_name))


def test_a_start_at_the_end_of_the_calendar_is_outside_the_role() -> None:
    start = datetime(9998, 12, 31, tzinfo=UTC)
    with pytest.raises(PolicyViolated, match="end before it starts"):
        ask(make_role(), Names(dns_names=("localhost",)), validity=Validity(not_before=start))


def test_a_role_cannot_date_back_to_where_certificates_have_no_time() -> None:
    with pytest.raises(InvalidRole) as caught:
        make_role(not_before_duration="32850d")
    assert [violation.field for violation in caught.value.violations] == ["not_before_duration"]
    make_role(not_before_duration="43800h")
