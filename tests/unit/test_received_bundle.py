"""Reading other people's trust bundles: what is wrong in part is wrong as a whole."""

from __future__ import annotations

import base64
import contextlib
import json
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from meshmint_server.spiffe import InvalidBundle, JwtKey, TrustBundle, TrustDomain, parse_bundle
from support.pki import extension, make_root

OTHER = TrustDomain("other.example")


def document(*roots: x509.Certificate, **members: Any) -> dict[str, Any]:
    """A bundle as our own endpoint would serve it, changed."""
    ders = tuple(root.public_bytes(Encoding.DER) for root in roots)
    made: dict[str, Any] = json.loads(TrustBundle(OTHER, ders, 7, timedelta(minutes=5)).document)
    return {**made, **members}


def parse(members: object) -> Any:
    return parse_bundle(json.dumps(members).encode(), OTHER)


def with_uri(uri: str) -> x509.Certificate:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
    return make_root(replace=[extension(names, False)]).certificate


ROOT = make_root().certificate
SECOND = make_root().certificate
(ENTRY,) = document(ROOT)["keys"]
KEY = ec.generate_private_key(ec.SECP256R1()).public_key()


def test_what_our_own_endpoint_serves_is_read_back() -> None:
    read = parse(document(ROOT, SECOND))

    assert read.roots == tuple(one.public_bytes(Encoding.DER) for one in (ROOT, SECOND))
    assert (read.sequence, read.refresh_hint) == (7, timedelta(minutes=5))


def test_no_keys_at_all_trust_nobody_and_are_no_mistake() -> None:
    assert parse({"keys": []}).roots == ()
    assert parse({"keys": []}).sequence is None


@pytest.mark.parametrize(
    "entry",
    [
        {"use": "jwt-svid", "kid": "a", "kty": "EC"},
        {"use": "wit-svid", "kty": "EC"},
        {"kty": "EC"},
        {**ENTRY, "kty": "AKP"},
        {**ENTRY, "kty": []},
    ],
)
def test_entries_for_others_are_ignored(entry: dict[str, Any]) -> None:
    assert parse({"keys": [entry, ENTRY]}).roots == (ROOT.public_bytes(Encoding.DER),)


def jwk(key: Any = None, **members: Any) -> dict[str, Any]:
    """An entry for JWT-SVIDs, as our own endpoint would serve it, changed; None takes one out."""
    key = key or KEY
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    changed = {**JwtKey("k1", info).jwk("jwt-svid"), **members}
    return {name: value for name, value in changed.items() if value is not None}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: rsa.generate_private_key(65537, 2048),
    ],
)
def test_keys_for_jwt_svids_are_read_and_handed_on_as_they_were(make: Callable[[], Any]) -> None:
    entry = jwk(make().public_key())
    read = parse({"keys": [ENTRY, {**entry, "alg": "x", "key_ops": ["verify"]}, entry]})

    bundle = TrustBundle(OTHER, read.roots, 1, timedelta(minutes=5), read.jwt_keys)
    assert json.loads(bundle.jwt_key_set) == {"keys": [entry]}
    assert json.loads(bundle.document)["keys"] == [ENTRY, entry]
    assert parse_bundle(bundle.document, OTHER).jwt_keys == read.jwt_keys


@pytest.mark.parametrize(
    "entry",
    [
        {"crv": "secp256k1"},
        {"kty": "OKP", "crv": "Ed25519"},
        {"kty": "AKP"},
        {"kty": None},
        {"crv": ["P-256"]},
    ],
)
def test_kinds_of_keys_that_are_not_known_are_ignored(entry: dict[str, Any]) -> None:
    assert parse({"keys": [jwk(**entry), jwk()]}).jwt_keys == parse({"keys": [jwk()]}).jwt_keys
    assert parse({"keys": [jwk(**entry)]}).jwt_keys == ()


@pytest.mark.parametrize(
    "members",
    [
        {"kid": None},
        {"kid": ""},
        {"kid": 7},
        {"kid": "a\n"},
        {"kid": "x" * 256},
        {"x": None},
        {"x": "AA"},
        {"x": "A" * 42 + "="},
        {"x": "+" * 43},
        {"x": "A" * 43},  # not on the curve
        {"x": 3},
        {"y": "A" * 100_000},
        {"d": "AAAA"},
        {"crv": "P-384"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "n": "A" * 342, "e": "AQAB"},
        {"kty": "RSA", "n": "_" * 170 + "8", "e": "AQAB"},  # 1024 bits
        {"kty": "RSA", "n": "_" * 342, "e": None},
        {"kty": "RSA", "n": "_" * 342, "e": "AQAAAAAB"},
        {"kty": "RSA", "n": "_" * 342, "e": "AQ"},
        {"kty": "RSA", "n": "_" * 2000, "e": "AQAB"},
    ],
)
def test_a_key_for_jwt_svids_that_cannot_be_used_makes_all_of_it_wrong(
    members: dict[str, Any],
) -> None:
    with pytest.raises(InvalidBundle):
        parse({"keys": [ENTRY, jwk(**members)]})


def test_two_keys_for_jwt_svids_never_share_a_kid() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    with pytest.raises(InvalidBundle, match="same 'kid'"):
        parse({"keys": [jwk(), jwk(other)]})


def test_of_several_certificates_the_first_counts_and_a_root_stands_once() -> None:
    (other,) = document(SECOND)["keys"]
    entry = {**ENTRY, "x5c": [*ENTRY["x5c"], *other["x5c"]]}

    assert parse({"keys": [entry, ENTRY]}).roots == (ROOT.public_bytes(Encoding.DER),)


def test_a_root_may_carry_the_name_of_its_own_trust_domain_and_of_no_other() -> None:
    assert parse(document(with_uri("spiffe://other.example"))).roots
    for uri in ("spiffe://mesh.example", "SPIFFE://mesh.example", "spiffe://other.example/%2e"):
        with pytest.raises(InvalidBundle, match="another trust domain"):
            parse(document(with_uri(uri)))


NO_CA = make_root(replace=[extension(x509.BasicConstraints(False, None), True)]).certificate
NO_CONSTRAINTS = make_root(without=[x509.BasicConstraints]).certificate


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([], "not a JSON object"),
        ({}, "no array 'keys'"),
        ({"keys": {}}, "no array 'keys'"),
        ({"keys": ["x"]}, "not an object"),
        ({"keys": [ENTRY] * 201}, "more than 200"),
        ({"keys": [{"use": "x509-svid", "kty": "EC"}]}, "no certificate"),
        ({"keys": [{**ENTRY, "x5c": []}]}, "no certificate"),
        ({"keys": [{**ENTRY, "x5c": [1]}]}, "no certificate"),
        ({"keys": [{**ENTRY, "x5c": ["AAAA"]}]}, "cannot be read"),
        ({"keys": [{**ENTRY, "x5c": [ENTRY["x5c"][0] + "\n"]}]}, "cannot be read"),
        ({"keys": [{**ENTRY, "x5c": ["é"]}]}, "cannot be read"),
        ({"keys": [{**ENTRY, "x": "AAAA"}]}, "parameters"),
        ({"keys": [{**ENTRY, "kty": "RSA"}]}, "parameters"),
        (document(NO_CA), "not that of a CA"),
        (document(NO_CONSTRAINTS), "not that of a CA"),
        ({"keys": [], "spiffe_sequence": -1}, "spiffe_sequence"),
        ({"keys": [], "spiffe_sequence": 2**63}, "spiffe_sequence"),
        ({"keys": [], "spiffe_sequence": 1.0}, "spiffe_sequence"),
        ({"keys": [], "spiffe_sequence": True}, "spiffe_sequence"),
        ({"keys": [], "spiffe_sequence": "1"}, "spiffe_sequence"),
        ({"keys": [], "spiffe_refresh_hint": -1}, "spiffe_refresh_hint"),
        ({"keys": [], "spiffe_refresh_hint": 10**12}, "spiffe_refresh_hint"),
    ],
)
def test_what_cannot_be_what_it_claims_to_be_is_refused(members: object, problem: str) -> None:
    with pytest.raises(InvalidBundle, match=problem):
        parse(members)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b'\xef\xbb\xbf{"keys": []}',
        b"<html>",
        b'{"keys": []} x',
        b'{"keys": [], "keys": []}',
        b'{"keys": [{"use": "a", "use": "x509-svid"}]}',
        b'{"keys": ' + b"[" * 100_000,
        b'{"keys": [], "spiffe_sequence": ' + b"9" * 5000 + b"}",
        b'{"keys": [], "spiffe_sequence": NaN}',
        b'{"keys": []}' + b" " * 1024 * 1024,
    ],
    ids=range(11),
)
def test_hostile_json_is_refused_and_nothing_else_happens(raw: bytes) -> None:
    with pytest.raises(InvalidBundle):
        parse_bundle(raw, OTHER)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=10,
)
FIELDS = st.sampled_from(["use", "kty", "crv", "x", "y", "n", "e", "x5c", "kid"])


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_bundle_or_refused(raw: bytes) -> None:
    with contextlib.suppress(InvalidBundle):
        parse_bundle(raw, OTHER)


@given(
    st.dictionaries(FIELDS, JSON),
    st.fixed_dictionaries({}, optional={"spiffe_sequence": JSON, "spiffe_refresh_hint": JSON}),
)
def test_a_changed_entry_gives_the_root_or_none_or_is_refused(
    changes: dict[str, Any], members: dict[str, Any]
) -> None:
    try:
        read = parse({"keys": [{**ENTRY, **changes}], **members})
    except InvalidBundle:
        return
    assert read.roots in ((), (ROOT.public_bytes(Encoding.DER),))
    assert read.sequence is None or 0 <= read.sequence < 2**63


def test_a_certificate_whose_serial_number_is_not_positive_is_refused() -> None:
    """The parser only warns of it, until its next release (RFC 5280 section 4.1.2.2)."""
    der = bytearray(ROOT.public_bytes(Encoding.DER))
    length = (ROOT.serial_number.bit_length() + 8) // 8
    der[der.index(ROOT.serial_number.to_bytes(length, "big"))] = 0x80
    entry = {**ENTRY, "x5c": [base64.b64encode(der).decode()]}

    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as in production
        with pytest.raises(InvalidBundle):
            parse({"keys": [entry]})


@given(st.integers(0, 2000), st.integers(0, 255))
@example(15, 0x80)  # a serial number that is not positive, of which the parser warns
def test_no_damage_to_a_certificate_escapes_as_another_error(position: int, octet: int) -> None:
    der = bytearray(ROOT.public_bytes(Encoding.DER))
    der[position % len(der)] = octet
    entry = {**ENTRY, "x5c": [base64.b64encode(der).decode()]}
    with contextlib.suppress(InvalidBundle):
        parse({"keys": [entry]})
