"""Templates and remembered grants: byte for byte what is built and decided anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest, MeshmintError, PolicyViolated
from meshmint_server.issuance import prepare as preparing
from meshmint_server.issuance.prepare import prepare
from meshmint_server.issuance.template import Template, Templates
from meshmint_server.keys import ToBeSigned
from meshmint_server.policy import (
    Caller,
    CertificateRequest,
    CsrContents,
    Decider,
    Decision,
    KeyAlgorithm,
    Names,
    PublicKey,
    Role,
    Validity,
    decide,
)
from support.policy import BOUNDS, NOW, make_caller, make_role
from support.software_key import SoftwareKey, software_issuer

ISSUER = software_issuer(SoftwareKey(), timedelta(days=365 * 60))
KEYS: list[PublicKey] = [
    *(ec.generate_private_key(curve).public_key() for curve in (ec.SECP256R1(), ec.SECP384R1())),
    ec.generate_private_key(ec.SECP521R1()).public_key(),
    rsa.generate_private_key(65537, 2048).public_key(),
    ed25519.Ed25519PrivateKey.generate().public_key(),
]
ROLES = [
    make_role(spiffe="own", key_type="any"),
    make_role(allow_any_name=True, require_cn=False, key_type="any", organization=["Example"]),
    make_role(
        allow_any_name=True, allow_ip_sans=True, require_cn=False, key_type="any",
        policy_identifiers=["1.2.3"], basic_constraints_valid_for_non_ca=True, key_usage=[],
        ext_key_usage_oids="1.2.3.4",
    ),
]  # fmt: skip
MOMENTS = st.datetimes(datetime(2026, 6, 1), datetime(2070, 1, 1)).map(  # noqa: DTZ001
    lambda moment: moment.replace(microsecond=0, tzinfo=UTC)
)


def granted(role: Role, names: Names) -> Decision:
    request = CertificateRequest(names=names, key_algorithm=KeyAlgorithm.EC_P256)
    return decide(role, make_caller(), request, now=NOW, bounds=BOUNDS)


@given(
    st.sampled_from(ROLES),
    st.integers(1, 2**159 - 1) | st.integers(0, 158).map(lambda bits: 2**bits),
    st.tuples(MOMENTS, MOMENTS),
    st.sampled_from(KEYS),
    st.integers(0, 12),
)
def test_a_filled_template_is_what_the_builder_makes(
    role: Role, serial: int, times: tuple[datetime, datetime], key: PublicKey, names: int
) -> None:
    asked = Names(dns_names=tuple(f"host-{n}.example.com" for n in range(max(1, names))))
    decision = granted(role, Names() if role.spiffe == "own" else asked)
    start, end = sorted(times)
    other = decision._replace(not_before=NOW.replace(microsecond=0), key=KEYS[0])
    algorithm = prepare(decision, ISSUER, key, NOW).algorithm
    template = Template(preparing._build(other, ISSUER, key, 1, algorithm))
    wanted = decision._replace(not_before=start, not_after=end + timedelta(seconds=1))
    built = preparing._build(wanted, ISSUER, key, serial, algorithm)
    assert template.fill(serial, wanted.not_before, wanted.not_after, key) == built


def test_the_second_certificate_of_a_grant_comes_from_its_template_and_differs_in_three_things(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    templates, decision = Templates(), granted(ROLES[0], Names())
    first = prepare(decision, ISSUER, KEYS[0], NOW, templates)
    monkeypatch.delattr(preparing, "_build")
    later = decision._replace(not_after=decision.not_after + timedelta(seconds=7))
    second = prepare(later, ISSUER, KEYS[0], NOW, templates)
    certificate = ISSUER.key.complete(second.to_be_signed)  # type: ignore[attr-defined]
    before = ISSUER.key.complete(first.to_be_signed)  # type: ignore[attr-defined]
    assert certificate.serial_number == second.serial_number != before.serial_number
    assert certificate.not_valid_after_utc == before.not_valid_after_utc + timedelta(seconds=7)
    assert list(certificate.extensions) == list(before.extensions)


def test_templates_of_other_grants_issuers_and_shards_are_not_taken() -> None:
    templates, decision = Templates(), granted(ROLES[0], Names())
    prepare(decision, ISSUER, KEYS[0], NOW, templates)
    other = software_issuer(SoftwareKey(), timedelta(days=365))
    assert templates.find(decision.grant, ISSUER, 0) is not None
    assert templates.find(decision.grant, ISSUER, 1) is None
    assert templates.find(decision.grant, other, 0) is None
    assert templates.find(granted(ROLES[0], Names()).grant, ISSUER, 0) is None


def test_only_so_many_templates_are_kept() -> None:
    templates = Templates(most=2)
    decisions = [granted(ROLES[0], Names()) for _ in range(3)]
    for decision in decisions:
        prepare(decision, ISSUER, KEYS[0], NOW, templates)
    found = [templates.find(decision.grant, ISSUER, 0) is None for decision in decisions]
    assert found == [True, False, False]


MANY_NAMES = CertificateRequest(names=Names(dns_names=tuple(f"h{n}.example.com" for n in range(9))))
LARGE_CSR = CertificateRequest(
    csr=CsrContents(
        KEYS[0],
        Names(common_name="www.example.com"),
        ignored_subject=tuple(f"1.2.3.{n}" for n in range(5000)),
    )
)


@pytest.mark.parametrize("request_", [MANY_NAMES, LARGE_CSR], ids=["many names", "a large CSR"])
def test_no_template_is_kept_of_what_would_fill_memory(request_: CertificateRequest) -> None:
    templates = Templates()
    decision = decide(DECIDER_ROLES[2], make_caller(), request_, now=NOW, bounds=BOUNDS)
    prepare(decision, ISSUER, KEYS[0], NOW, templates)
    assert templates.find(decision.grant, ISSUER, 0) is None


@pytest.mark.parametrize("data", [b"\x30\x00", b"\x30\x03\x02\x01\x01", bytes(64)])
def test_what_is_no_certificate_becomes_no_template(data: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        Template(ToBeSigned(data, b""))


# What a Decider remembers


REQUESTS = [
    CertificateRequest(),
    CertificateRequest(key_algorithm=KeyAlgorithm.RSA_2048),
    CertificateRequest(names=Names(dns_names=("a.example.com",))),
    CertificateRequest(names=Names(dns_names=("a.example.org",))),
    CertificateRequest(names=Names(uris=("spiffe://example.org/ns/shop/sa/cart",))),
    CertificateRequest(names=Names(uris=("spiffe://example.org/ns/shop/sa/pay",))),
    CertificateRequest(names=Names(common_name="a.example.com")),
    CertificateRequest(validity=Validity(ttl=timedelta(hours=1))),
    CertificateRequest(validity=Validity(ttl=timedelta(days=10_000))),
    CertificateRequest(validity=Validity(ttl=timedelta(0))),
    CertificateRequest(validity=Validity(not_after=NOW + timedelta(hours=2))),
]
CALLERS = [make_caller(), make_caller(), make_caller(service_account="pay", spiffe_id=None)]
DECIDER_ROLES = [
    make_role(spiffe="own"),
    make_role(spiffe="own"),
    make_role(allow_any_name=True, require_cn=False),
    make_role(allowed_domains=["example.com"], allow_subdomains=True, require_cn=False),
    make_role(spiffe="matching", allowed_uri_sans=["spiffe://example.org/ns/shop/*"]),
]


def outcome_of(decision: Decision | MeshmintError) -> object:
    if isinstance(decision, MeshmintError):
        return type(decision), decision.message, decision.violations
    return decision


@given(
    st.lists(
        st.tuples(
            st.sampled_from(DECIDER_ROLES),
            st.sampled_from(CALLERS),
            st.sampled_from(REQUESTS),
            st.integers(0, 10**6),
        ),
        max_size=30,
    )
)
def test_a_decider_decides_as_if_it_remembered_nothing(
    calls: list[tuple[Role, Caller, CertificateRequest, int]],
) -> None:
    decider = Decider(most=4)
    for role, caller, request, seconds in calls:
        now = NOW + timedelta(seconds=seconds)
        found: list[Decision | MeshmintError] = []
        for one in (decider.decide, decide):
            try:
                found.append(one(role, caller, request, now=now, bounds=BOUNDS))
            except (InvalidRequest, PolicyViolated) as error:
                found.append(error)
        assert outcome_of(found[0]) == outcome_of(found[1])


def test_the_same_request_is_granted_by_the_same_grant_and_another_caller_s_is_not() -> None:
    decider, role = Decider(), DECIDER_ROLES[0]

    def grant(caller: Caller, **fields: object) -> object:
        request = CertificateRequest(**fields)  # type: ignore[arg-type]
        return decider.decide(role, caller, request, now=NOW, bounds=BOUNDS).grant

    first = grant(CALLERS[0])
    assert grant(CALLERS[0]) is first
    assert grant(CALLERS[0], validity=Validity(ttl=timedelta(minutes=5))) is first
    assert grant(CALLERS[1]) is not first


@pytest.mark.parametrize(
    "request_",
    [
        MANY_NAMES,
        LARGE_CSR,
        # One name, a thousand times.
        CertificateRequest(names=Names(dns_names=("www.example.com", "WWW.example.com") * 450)),
    ],
    ids=["many names", "a large CSR", "many spellings"],
)
def test_what_would_fill_memory_is_not_remembered(request_: CertificateRequest) -> None:
    decider = Decider()
    one, other = (
        decider.decide(DECIDER_ROLES[2], CALLERS[0], request_, now=NOW, bounds=BOUNDS)
        for _ in range(2)
    )
    assert one == other
    assert one.grant is not other.grant


def test_a_certificate_of_a_remembered_grant_has_the_key_of_this_request() -> None:
    templates, decider = Templates(), Decider()
    for _ in range(3):
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        decision = decider.decide(
            DECIDER_ROLES[0], CALLERS[0], CertificateRequest(), now=NOW, bounds=BOUNDS
        )
        prepared = prepare(decision, ISSUER, key, NOW, templates)
        certificate = ISSUER.key.complete(prepared.to_be_signed)  # type: ignore[attr-defined]
        assert certificate.public_key() == key
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        assert identifier.value == x509.SubjectKeyIdentifier.from_public_key(key)
