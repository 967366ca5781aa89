"""Generated roles, callers and requests: what is granted always satisfies the role.

The decision becomes a certificate by the service's own issuance, and an independent
oracle judges that certificate against the role's document.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest, InvalidRole, PolicyViolated
from meshmint_server.issuance.prepare import prepare
from meshmint_server.policy import (
    CertificateRequest,
    CsrContents,
    Decision,
    KeyAlgorithm,
    Names,
    Role,
    Validity,
    decide,
)
from support import generated_roles as generated
from support.generated_cases import (
    Case,
    address_cases,
    domain_cases,
    several_uri_cases,
    template_cases,
    uri_cases,
    validity_cases,
)
from support.policy import BOUNDS, NOW, make_caller
from support.role_oracle import find_problems, san_of
from support.software_key import SoftwareKey, software_issuer

ISSUER_KEY = SoftwareKey()
# It outlives whatever a generated role may ask for.
ISSUER = replace(
    software_issuer(ISSUER_KEY, timedelta(days=1)),
    not_after=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
)
CURVES = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}


@cache
def _public_key(
    algorithm: KeyAlgorithm,
) -> rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    kind, bits = algorithm.value
    if kind == "rsa":
        # Nobody signs with it, so any odd number of the size will do.
        return rsa.RSAPublicNumbers(65_537, (1 << (bits - 1)) + 1).public_key()
    if kind == "ec":
        return ec.generate_private_key(CURVES[bits]).public_key()
    return ed25519.Ed25519PrivateKey.generate().public_key()


def _issue(decision: Decision) -> x509.Certificate:
    """Has the decision issued as the service does, and reads the certificate again."""
    key = decision.key
    public_key = _public_key(key) if isinstance(key, KeyAlgorithm) else key
    return ISSUER_KEY.complete(prepare(decision, ISSUER, public_key, NOW).to_be_signed)


def _judge(
    document: dict[str, Any],
    caller_of: tuple[dict[str, Any], str | None],
    request: CertificateRequest,
) -> bool:
    """Decides, and lets the oracle judge what was granted; False if it was refused."""
    attributes, spiffe_id = caller_of
    caller = make_caller(attributes=attributes, spiffe_id=spiffe_id)
    try:
        role = Role.from_document(document)
    except InvalidRole:
        return False
    assert Role.from_document(role.document()) == role
    try:
        decision = decide(role, caller, request, now=NOW, bounds=BOUNDS)
    except (InvalidRequest, PolicyViolated) as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.violations
        return False
    certificate = _issue(decision)
    facts = {**caller.attributes, **({"spiffe_id": spiffe_id} if spiffe_id else {})}
    problems = find_problems(
        certificate,
        document,
        facts,
        trust_domain=str(BOUNDS.trust_domain),
        now=NOW,
        service_max_ttl=BOUNDS.max_ttl,
    )
    assert problems == []
    taken = request.csr.names if request.csr and role.use_csr_sans else request.names
    _check_nothing_was_dropped(taken, certificate)
    return True


def _check_nothing_was_dropped(asked: Names, certificate: x509.Certificate) -> None:
    granted = {str(name.value).lower() for name in san_of(certificate)}
    addresses = [_address(text) for text in asked.ip_addresses]
    for text in (*asked.dns_names, *asked.email_addresses, *addresses, *asked.uris):
        if text.isascii():
            assert text.lower() in granted


def _address(text: str) -> str:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@settings(max_examples=300, deadline=None)
@given(
    document=generated.roles(),
    caller_of=generated.callers(),
    names=generated.names,
    algorithm=generated.key_algorithms,
    ttl=generated.ttls,
    start=generated.starts,
)
def test_whatever_is_issued_satisfies_the_role(
    *,
    document: dict[str, Any],
    caller_of: tuple[dict[str, Any], str | None],
    names: Names,
    algorithm: KeyAlgorithm | None,
    ttl: int | None,
    start: int | None,
) -> None:
    validity = Validity(
        ttl=None if ttl is None else timedelta(seconds=ttl),
        not_before=None if start is None else NOW + timedelta(seconds=start),
    )
    algorithm = algorithm if document["key_type"] == "any" else None
    request = CertificateRequest(names=names, key_algorithm=algorithm, validity=validity)
    _judge(document, caller_of, request)


def _repeat_what_the_role_wants_beside(document: dict[str, Any], names: Names) -> Names:
    if document["use_csr_sans"]:
        names = Names(common_name=names.common_name)
    return replace(names, common_name="") if document["use_csr_common_name"] else names


@settings(max_examples=300, deadline=None)
@given(
    document=generated.roles(),
    caller_of=generated.callers(),
    names=generated.names,
    beside=st.none() | st.none() | st.none() | generated.names,
    algorithm=st.sampled_from(list(KeyAlgorithm)),
    wants_ca=st.integers(0, 9).map(lambda n: n == 7),
)
def test_whatever_is_signed_satisfies_the_role(
    *,
    document: dict[str, Any],
    caller_of: tuple[dict[str, Any], str | None],
    names: Names,
    beside: Names | None,
    algorithm: KeyAlgorithm,
    wants_ca: bool,
) -> None:
    if algorithm.value[0] != document["key_type"]:
        document = {**document, "key_type": "any", "key_bits": 0}
    if beside is None:
        beside = _repeat_what_the_role_wants_beside(document, names)
    csr = CsrContents(public_key=_public_key(algorithm), names=names, wants_ca=wants_ca)
    is_granted = _judge(document, caller_of, CertificateRequest(names=beside, csr=csr))
    assert not (wants_ca and is_granted)


def _count_granted(case: Case, seen: dict[bool, int]) -> None:
    is_granted = _judge(*case)
    seen[is_granted] = seen.get(is_granted, 0) + 1


@pytest.mark.parametrize(
    ("cases", "amount"),
    [
        (domain_cases(), 600),
        (uri_cases(), 500),
        (template_cases(), 200),
        (several_uri_cases(), 60),
        (address_cases(), 100),
        (validity_cases(), 300),
    ],
    ids=["domains", "uris", "templates", "several-uris", "addresses", "validity"],
)
def test_whatever_is_granted_on_one_subject_satisfies_the_role(
    cases: st.SearchStrategy[Case], amount: int
) -> None:
    seen: dict[bool, int] = {}
    settings(max_examples=amount, deadline=None)(
        given(cases)(lambda case: _count_granted(case, seen))
    )()
    # Neither outcome is so rare that the property would be empty.
    assert min(seen[True], seen[False]) >= 5


def test_oracle_and_policy_meet_on_a_plain_case() -> None:
    """The property is not empty: this is granted, and the oracle sees what is wrong elsewhere."""
    document = {"name": "r", "callers": [{}], "key_type": "ec", "spiffe": "own"}
    own = "spiffe://example.org/ns/shop/sa/cart"
    assert _judge(document, ({}, own), CertificateRequest())
    role = Role.from_document(document)
    decision = decide(role, make_caller(), CertificateRequest(), now=NOW, bounds=BOUNDS)
    problems = find_problems(
        _issue(decision),
        document,
        {"spiffe_id": "spiffe://example.org/ns/shop/sa/other"},
        trust_domain="example.org",
        now=NOW,
        service_max_ttl=timedelta(hours=1),
    )
    assert problems == ["ends too late", "lives too long", "somebody else's SPIFFE ID"]
    with pytest.raises(AssertionError):
        _check_nothing_was_dropped(Names(dns_names=("a.test",)), _issue(decision))
