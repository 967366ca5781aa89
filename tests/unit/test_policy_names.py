"""Names by role: Vault's observed truth table, and where Meshmint is stricter."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest, MeshmintError, PolicyViolated
from meshmint_server.policy import Names, OtherName
from meshmint_server.policy.globs import Glob
from meshmint_server.policy.names import MalformedName, parse_dns_name
from support.policy import decide_names, make_role, violations_of

SUBDOMAINS = {"allowed_domains": ["example.com"], "allow_subdomains": True}
BARE = {"allowed_domains": ["example.com"], "allow_bare_domains": True}
GLOB = {"allowed_domains": ["*.example.com"], "allow_glob_domains": True}


def _ask(name: str) -> Names:
    return Names(email_addresses=(name,)) if "@" in name else Names(dns_names=(name,))


@pytest.mark.parametrize(
    ("fields", "name", "is_granted"),
    [
        (SUBDOMAINS, "example.com", False),
        (SUBDOMAINS, "a.b.example.com", True),
        (SUBDOMAINS, "*.example.com", True),
        (SUBDOMAINS, "*.a.example.com", True),
        (SUBDOMAINS, "user@a.example.com", True),
        (SUBDOMAINS, "user@example.com", False),
        (SUBDOMAINS, "badexample.com", False),
        (SUBDOMAINS, "a.example.com.evil.net", False),
        (SUBDOMAINS, "A.Example.COM", True),  # Vault: refused, by case
        (SUBDOMAINS, "x.localhost", True),
        (BARE, "EXAMPLE.com", True),
        (BARE, "*.example.com", False),
        (BARE, "user@example.com", True),
        (BARE, "a.example.com", False),
        (BARE, "localhost", True),
        (BARE, "localdomain", True),
        (BARE, "*.localhost", True),
        (BARE, "x.localhost", False),
        (BARE, "user@localhost", True),
        ({**BARE, "allow_localhost": False}, "localhost", False),
        ({**BARE, "allow_localhost": False}, "*.localhost", False),
        ({**BARE, "allowed_domains": ["*.example.com"]}, "*.example.com", True),
        ({**BARE, "allowed_domains": ["*.example.com"]}, "a.example.com", False),
        ({**BARE, "allowed_domains": ["ops@example.com"]}, "ops@example.com", True),
        ({**BARE, "allowed_domains": ["ops@example.com"]}, "dev@example.com", False),
        (GLOB, "a.b.example.com", True),
        (GLOB, "*.example.com", True),
        (GLOB, "example.com", False),
        ({**GLOB, "allowed_domains": ["ftp*.example.com"]}, "ftp1.x.example.com", True),
        ({**GLOB, "allowed_domains": ["ftp*.Example.com"]}, "FTP1.example.com", True),
        ({**GLOB, "allowed_domains": ["*@example.com"]}, "user@example.com", True),
        ({**GLOB, "allowed_domains": ["example.com"]}, "example.com", False),
        ({"allow_localhost": False, **BARE, "allow_bare_domains": False}, "example.com", False),
        ({"allow_any_name": True}, "whatever.test", True),
        ({"allow_any_name": True}, "*.whatever.test", True),
        ({"allow_any_name": True, "allow_wildcard_certificates": False}, "*.a.test", False),
        ({**SUBDOMAINS, "allow_wildcard_certificates": False}, "*.example.com", False),
        ({**GLOB, "allow_wildcard_certificates": False}, "*.example.com", False),
        ({"allow_any_name": True}, "under_score.test", False),
        ({"allow_any_name": True, "enforce_hostnames": False}, "under_score.test", True),
        ({**SUBDOMAINS, "enforce_hostnames": False}, "_sip._tcp.example.com", True),
        ({**SUBDOMAINS, "enforce_hostnames": False}, "_sip._tcp.example.net", False),
        ({}, "localhost", True),
        ({}, "example.com", False),
    ],
)
def test_domains_as_vault_reads_them(
    fields: dict[str, object], name: str, is_granted: bool
) -> None:
    role = make_role(require_cn=False, **fields)
    if is_granted:
        (san,) = decide_names(role, _ask(name)).grant.sans
        assert str(san.value) == name.lower()
    else:
        with pytest.raises(PolicyViolated):
            decide_names(role, _ask(name))
    # The same as common name: one rule, one normal form.
    if is_granted:
        decision = decide_names(role, Names(common_name=name))
        attribute = decision.grant.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0]
        assert attribute.value == name.lower()
    else:
        with pytest.raises(PolicyViolated):
            decide_names(role, Names(common_name=name))


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        ".",
        "*",
        "a.example.com.",
        ".a.example.com",
        "a..example.com",
        "a.*.example.com",
        "*.*.example.com",
        "f*o.example.com",
        "*x.example.com",
        "a b.example.com",
        "a.example.com\n",
        "a.example.com\x00.evil.net",
        "a/b.example.com",
        "xn--.example.com",
        "xn--a-ecp.ru.example.com\u0301.",
        "xn--zzzzzz999999.example.com",
        "a" * 64 + ".example.com",
        ".".join(["abcdefgh"] * 29) + ".example.com",
        "10.0.0.1",
        "foo.123",
        "\u2488example.com",
        "b\u00fccher." + "\u00fc" * 60 + ".example.com",
        "a" * 5000,
    ],
)
def test_malformed_dns_name_is_refused(name: str) -> None:
    role = make_role(allow_any_name=True, require_cn=False, enforce_hostnames=False)
    with pytest.raises(InvalidRequest) as caught:
        decide_names(role, Names(dns_names=("fine.test", name)))
    assert set(violations_of(caught.value)) == {"names.dns_names[1]"}


@pytest.mark.parametrize(
    "spelling", ["b\u00fccher.example", "B\u00dcCHER.example", "xn--bcher-kva.example"]
)
@pytest.mark.parametrize(
    "entry", ["b\u00fccher.example", "xn--bcher-kva.example", "XN--BCHER-KVA.Example"]
)
def test_one_spelling_of_an_idn_in_the_role_is_enough(entry: str, spelling: str) -> None:
    role = make_role(allowed_domains=[entry], allow_bare_domains=True)
    decision = decide_names(role, Names(common_name=spelling, dns_names=(spelling,)))
    assert decision.grant.subject.rfc4514_string() == "CN=xn--bcher-kva.example"
    assert decision.grant.sans == (x509.DNSName("xn--bcher-kva.example"),)


@given(st.text(max_size=80))
def test_whatever_is_accepted_is_a_name_in_normal_form(text: str) -> None:
    try:
        name = parse_dns_name(text)
    except MalformedName:
        return
    assert parse_dns_name(name.text) == name
    assert len(name.text) <= 253
    assert all(0 < len(label) <= 63 for label in name.text.split("."))
    assert set(name.text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.*")
    assert "*" not in name.base


@pytest.mark.parametrize(
    "address",
    ["@example.com", "a@", "a@b@example.com", "a b@example.com", "a@*.example.com", "a", '"a"@b.c'
     , "a\n@example.com", "\u00fc@example.com", "x" * 65 + "@example.com"],
)  # fmt: skip
def test_malformed_email_address_is_refused(address: str) -> None:
    role = make_role(allow_any_name=True, require_cn=False)
    with pytest.raises(InvalidRequest):
        decide_names(role, Names(email_addresses=(address,)))


def test_email_local_part_keeps_its_case() -> None:
    role = make_role(allow_any_name=True, require_cn=False)
    decision = decide_names(role, Names(email_addresses=("First.Last@Example.COM",)))
    assert decision.grant.sans == (x509.RFC822Name("First.Last@example.com"),)


# Common names


def test_common_name_is_required_by_default() -> None:
    role = make_role(allow_any_name=True)
    with pytest.raises(PolicyViolated) as caught:
        decide_names(role, Names(dns_names=("a.test",)))
    assert set(violations_of(caught.value)) == {"names.common_name"}


def test_common_name_comes_first_among_the_sans_and_once() -> None:
    role = make_role(allow_any_name=True)
    decision = decide_names(
        role, Names(common_name="B.test", dns_names=("a.test", "b.test", "A.test"))
    )
    assert [san.value for san in decision.grant.sans] == ["b.test", "a.test"]


def test_common_name_stays_out_of_the_sans_when_asked() -> None:
    role = make_role(allow_any_name=True)
    decision = decide_names(
        role,
        Names(common_name="b.test", dns_names=("a.test",), exclude_common_name_from_sans=True),
    )
    assert [san.value for san in decision.grant.sans] == ["a.test"]
    assert decision.grant.subject.rfc4514_string() == "CN=b.test"


def test_common_name_excluded_from_the_sans_is_checked_all_the_same() -> None:
    role = make_role(**SUBDOMAINS)
    with pytest.raises(PolicyViolated):
        decide_names(role, Names(common_name="a.example.net", exclude_common_name_from_sans=True))


@pytest.mark.parametrize(
    ("validations", "common_name", "is_granted"),
    [
        (["hostname"], "a.test", True),
        (["hostname"], "user@a.test", False),
        (["email"], "user@a.test", True),
        (["email"], "a.test", False),
        (["email"], "10.0.0.1", False),
        (["email", "hostname"], "user@a.test", True),
        ([], "a.test", False),
    ],
)
def test_cn_validations(validations: list[str], common_name: str, is_granted: bool) -> None:
    role = make_role(allow_any_name=True, require_cn=False, cn_validations=validations)
    if is_granted:
        assert decide_names(role, Names(common_name=common_name)).grant.sans
    else:
        with pytest.raises(PolicyViolated):
            decide_names(role, Names(common_name=common_name))


def test_disabled_cn_validation_lets_any_text_into_the_subject_alone() -> None:
    role = make_role(cn_validations=["disabled"], **SUBDOMAINS)
    decision = decide_names(role, Names(common_name="Device Nr. 7"))
    assert decision.grant.sans == ()
    assert decision.grant.subject.rfc4514_string() == "CN=Device Nr. 7"


def test_disabled_cn_validation_does_not_let_a_host_name_into_the_sans() -> None:
    role = make_role(cn_validations=["disabled"], **SUBDOMAINS)
    with pytest.raises(PolicyViolated):
        decide_names(role, Names(common_name="a.example.net"))
    decision = decide_names(
        role, Names(common_name="a.example.net", exclude_common_name_from_sans=True)
    )
    assert decision.grant.sans == ()


@pytest.mark.parametrize("common_name", ["a\nb", "a\x00b", " a", "a ", "x" * 65, "\u202ea"])
@pytest.mark.parametrize("validations", [["disabled"], ["email", "hostname"]])
def test_malformed_common_name_is_refused_by_every_role(
    validations: list[str], common_name: str
) -> None:
    role = make_role(allow_any_name=True, enforce_hostnames=False, cn_validations=validations)
    with pytest.raises(InvalidRequest) as caught:
        decide_names(role, Names(common_name=common_name))
    assert set(violations_of(caught.value)) == {"names.common_name"}


def test_free_text_common_name_needs_enforce_hostnames_off() -> None:
    text = "My Device 7"
    free = make_role(allow_any_name=True, enforce_hostnames=False)
    decision = decide_names(free, Names(common_name=text))
    assert decision.grant.subject.rfc4514_string() == f"CN={text}"
    assert decision.grant.sans == ()
    with pytest.raises(InvalidRequest):
        decide_names(make_role(allow_any_name=True), Names(common_name=text))
    listed = make_role(
        allowed_domains=["My Device *"], allow_glob_domains=True, enforce_hostnames=False
    )
    assert decide_names(listed, Names(common_name=text)).grant.sans == ()
    with pytest.raises(PolicyViolated):
        decide_names(listed, Names(common_name="Another Device"))


@pytest.mark.parametrize(
    "common_name",
    ["ops@*.example.com", "a.*.example.com", "f*o", "a@b@c.test", "..", "a..b", "a.test."],
)
def test_broken_address_wildcard_or_name_is_no_free_text(common_name: str) -> None:
    role = make_role(allow_any_name=True, enforce_hostnames=False)
    with pytest.raises(InvalidRequest):
        decide_names(role, Names(common_name=common_name))


def test_long_single_word_may_be_a_free_text_common_name() -> None:
    fingerprint = "0123456789abcdef" * 4
    role = make_role(allow_any_name=True, enforce_hostnames=False)
    assert decide_names(role, Names(common_name=fingerprint)).grant.sans == ()


def test_ip_literal_as_common_name_is_an_ip_san() -> None:
    role = make_role(allowed_ip_sans_cidr=["10.0.0.0/8"], allow_any_name=True)
    (san,) = decide_names(role, Names(common_name="10.1.2.3")).grant.sans
    assert isinstance(san, x509.IPAddress)
    with pytest.raises(PolicyViolated):
        decide_names(role, Names(common_name="192.0.2.1"))


# IP addresses, other names, subject


@pytest.mark.parametrize(
    ("fields", "address", "error"),
    [
        ({}, "192.0.2.1", None),
        ({}, "2001:db8::1", None),
        ({"allow_ip_sans": False}, "192.0.2.1", PolicyViolated),
        ({"allowed_ip_sans_cidr": ["10.0.0.0/8", "2001:db8::/32"]}, "10.255.0.1", None),
        ({"allowed_ip_sans_cidr": ["10.0.0.0/8", "2001:db8::/32"]}, "2001:db8::1", None),
        ({"allowed_ip_sans_cidr": ["10.0.0.0/8", "2001:db8::/32"]}, "11.0.0.1", PolicyViolated),
        ({"allowed_ip_sans_cidr": ["10.0.0.0/8"]}, "::ffff:10.0.0.1", None),
        ({"allowed_ip_sans_cidr": ["10.0.0.7/8"]}, "10.9.9.9", None),
        ({}, "1.2.3", InvalidRequest),
        ({}, "010.0.0.1", InvalidRequest),
        ({}, "10.0.0.1/32", InvalidRequest),
        ({}, "fe80::1%eth0", InvalidRequest),
        ({}, "10.0.0.1\n", InvalidRequest),
        ({}, "", InvalidRequest),
    ],
)
def test_ip_addresses(
    fields: dict[str, object], address: str, error: type[MeshmintError] | None
) -> None:
    role = make_role(require_cn=False, **fields)
    if error is None:
        (san,) = decide_names(role, Names(ip_addresses=(address,))).grant.sans
        assert isinstance(san, x509.IPAddress)
    else:
        with pytest.raises(error):
            decide_names(role, Names(ip_addresses=(address,)))


UPN = "1.3.6.1.4.1.311.20.2.3"


@pytest.mark.parametrize(
    ("rules", "type_id", "value", "error"),
    [
        (["*"], UPN, "x", None),
        ([f"{UPN};UTF8:*@example.com"], UPN, "devops@example.com", None),
        ([f"{UPN};utf-8:*"], UPN, "\u00fc", None),
        ([f"{UPN};UTF8:*@example.com"], UPN, "devops@example.net", PolicyViolated),
        ([f"{UPN};UTF8:*@example.com"], "1.3.6.1.4.1.311.20.2.4", "a@example.com", PolicyViolated),
        ([], UPN, "x", PolicyViolated),
        (["*"], UPN, "", InvalidRequest),
        (["*"], UPN, "a\x00b", InvalidRequest),
        (["*"], "not-an-oid", "x", InvalidRequest),
        (["*"], "1.2\n", "x", InvalidRequest),
        (["*"], "99.1", "x", InvalidRequest),
    ],
)
def test_other_names(
    rules: list[str], type_id: str, value: str, error: type[MeshmintError] | None
) -> None:
    role = make_role(require_cn=False, allowed_other_sans=rules)
    names = Names(other_names=(OtherName(type_id, value),))
    if error is None:
        (san,) = decide_names(role, names).grant.sans
        assert isinstance(san, x509.OtherName)
        assert san.value == bytes((0x0C, len(value.encode()))) + value.encode()
    else:
        with pytest.raises(error):
            decide_names(role, names)


def test_serial_number_and_user_ids_by_their_globs() -> None:
    role = make_role(
        require_cn=False,
        allowed_serial_numbers=["device-*", "42"],
        allowed_user_ids=["Alice", "ops-*"],
    )
    decision = decide_names(
        role, Names(subject_serial_number="device-7", user_ids=("ALICE", "ops-1"))
    )
    assert decision.grant.subject.rfc4514_string() == "UID=ops-1,UID=ALICE,2.5.4.5=device-7"
    with pytest.raises(PolicyViolated) as caught:
        decide_names(role, Names(subject_serial_number="421", user_ids=("bob",)))
    assert set(violations_of(caught.value)) == {"names.subject_serial_number", "names.user_ids[0]"}
    with pytest.raises(InvalidRequest):
        decide_names(role, Names(subject_serial_number="device-\u00fc"))
    with pytest.raises(InvalidRequest):
        decide_names(role, Names(user_ids=("ops-\n",)))


def test_subject_comes_from_the_role_in_x500_order() -> None:
    role = make_role(
        allow_any_name=True,
        ou=["Payments", "Payments"],
        organization=["Example, Inc."],
        country="DE",
        locality=["Berlin"],
        province=["BE"],
        street_address=["Road 1"],
        postal_code=[10115],
    )
    decision = decide_names(role, Names(common_name="a.test"))
    assert [attribute.rfc4514_attribute_name for attribute in decision.grant.subject] == [
        "C", "ST", "L", "STREET", "2.5.4.17", "O", "OU", "CN",
    ]  # fmt: skip
    assert decision.grant.subject.get_attributes_for_oid(x509.NameOID.ORGANIZATION_NAME)[
        0
    ].value == ("Example, Inc.")


# Amounts


def test_a_thousand_sans_are_the_limit() -> None:
    role = make_role(allow_any_name=True, require_cn=False)
    names = tuple(f"n{i}.test" for i in range(1001))
    assert len(decide_names(role, Names(dns_names=names[:1000])).grant.sans) == 1000
    with pytest.raises(InvalidRequest, match="at most 1000"):
        decide_names(role, Names(dns_names=names))


def test_asking_for_no_name_at_all_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one name"):
        decide_names(make_role(require_cn=False))


# Globs


@given(st.text("ab*", max_size=8), st.text("ab", max_size=10))
def test_glob_agrees_with_a_regular_expression(pattern: str, text: str) -> None:
    import re

    expression = "".join(".*" if c == "*" else re.escape(c) for c in pattern)
    assert Glob(pattern).matches(text) == bool(re.fullmatch(expression, text, re.DOTALL))


def test_glob_matches_whole_text_only() -> None:
    assert not Glob("abc").matches("abc\n")
    assert not Glob("a*c").matches("abc\n")
    assert not Glob("ab*ba").matches("aba")
