"""Mutated CSRs: whatever strangers send is read or refused, and nothing else escapes.

Warnings are errors in this suite, so a warning of the parser would be seen too.
"""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest
from meshmint_server.policy import CsrContents, csr, parse_csr, parse_csr_der
from support.made_csrs import extension, extension_request, handmade_csr, key, make_csr, san

SOUND = make_csr(
    san(
        x509.DNSName("a.test"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.UniformResourceIdentifier("spiffe://example.org/x"),
        x509.RFC822Name("me@example.com"),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x0c\x02hi"),
    ),
    x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),
    x509.BasicConstraints(ca=False, path_length=None),
    x509.TLSFeature([x509.TLSFeatureType.status_request]),
    subject=[(NameOID.COMMON_NAME, "a.test"), (NameOID.COUNTRY_NAME, "DE")],
    attributes=[(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), b"secret")],
    private_key=key("ec-256"),
).public_bytes(serialization.Encoding.DER)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Changes, cuts out, doubles or inserts a few bytes of a sound CSR."""
    data = bytearray(SOUND)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["set", "flip", "cut", "double", "insert"]))
        if kind == "set":
            data[position : position + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "flip" and data:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[position : position + draw(st.integers(1, 8))]
        elif kind == "double":
            data[position:position] = data[position : position + draw(st.integers(1, 16))]
        else:
            data[position:position] = draw(st.binary(min_size=1, max_size=4))
    return bytes(data)


def _check(contents: CsrContents) -> None:
    names = contents.names
    texts = (
        *names.dns_names, *names.uris, *names.email_addresses, *names.ip_addresses,
        *names.user_ids, names.common_name, names.subject_serial_number,
    )  # fmt: skip
    assert all(text.isprintable() for text in texts)


def _read(der: bytes) -> None:
    try:
        contents = parse_csr_der(der)
    except InvalidRequest:
        return
    _check(contents)


@settings(max_examples=600, deadline=None)
@given(mutated())
def test_mutated_csr_is_read_or_refused(der: bytes) -> None:
    _read(der)


@settings(max_examples=600, deadline=None)
@given(mutated())
def test_mutated_csr_is_read_or_refused_past_its_signature(der: bytes) -> None:
    """With the signature check out of the way, mutations reach subject and extensions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csr, "_check_signature", lambda _: None)
        _read(der)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(
            extension,
            st.sampled_from(["2.5.29.17", "2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.14",
                             "2.5.29.30", "2.5.29.32", "1.3.6.1.5.5.7.1.24", "1.2.3"]),
            st.binary(max_size=24)
            | st.binary(max_size=20).map(lambda body: bytes((0x30, len(body))) + body),
        ),
        max_size=3,
    )
)  # fmt: skip
def test_signed_nonsense_in_extensions_is_read_or_refused(extensions: list[bytes]) -> None:
    _read(handmade_csr(extension_request(*extensions)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
def test_signed_nonsense_as_subject_and_attributes_is_read_or_refused(data: bytes) -> None:
    _read(handmade_csr(subject=data))
    _read(handmade_csr(data))
    _read(handmade_csr(spki=data))


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    for pem in (
        text,
        f"-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----",
    ):
        with pytest.raises(InvalidRequest):
            parse_csr(pem)
