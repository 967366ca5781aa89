"""OCSP requests: what is read, and what is refused, however it is put together."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.x509 import ocsp
from hypothesis import example, given
from hypothesis import strategies as st
from meshmint_server.authority.ocsp.request import MalformedRequest, issuer_ids, parse_request
from support.ocsp import (
    NONCE,
    UNKNOWN_OID,
    cert_id,
    element,
    extension,
    request_for,
    request_of,
    single,
)
from support.pki import make_root

MD5 = bytes.fromhex("06082a864886f70d0205")
SERVICE_LOCATOR = bytes.fromhex("06092b0601050507300107")
GOOD = request_of(single())
SIGNATURE = element(0xA0, element(0x30, element(0x30, UNKNOWN_OID), element(0x03, b"\x00sig")))


def nonce(size: int) -> bytes:
    return extension(NONCE, element(0x04, b"n" * size))


@pytest.mark.parametrize("algorithm", [hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])  # noqa: S303, E501  # fmt: skip
def test_an_issuer_is_known_by_every_hash(algorithm: hashes.HashAlgorithm) -> None:
    issuer = make_root().certificate
    request = parse_request(request_for(issuer, 77, algorithm=algorithm))
    assert request.serial_number == 77
    assert request.issuer in set(issuer_ids(issuer))
    assert request.issuer not in set(issuer_ids(make_root().certificate))


@pytest.mark.parametrize("size", [1, 16, 32, 128])
def test_a_nonce_of_1_to_128_octets_is_read(size: int) -> None:
    assert parse_request(request_of(single(), extensions=[nonce(size)])).nonce == b"n" * size


@pytest.mark.parametrize(
    "document",
    [
        request_of(single(), signature=SIGNATURE),
        request_of(single(), before=element(0xA1, element(0x82, b"who.example"))),
        request_of(single(), extensions=[extension(UNKNOWN_OID, b"x")]),
        request_of(single(extensions=[extension(SERVICE_LOCATOR, b"x")])),
    ],
    ids=["signed", "requestor name", "extension", "extension of the single request"],
)
def test_what_changes_no_answer_is_not_looked_at(document: bytes) -> None:
    assert parse_request(document) == parse_request(GOOD)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\x00" * 100,
        GOOD[:-1],
        GOOD + b"\x00",
        b"\x30\x80" + GOOD[2:] + b"\x00\x00",
        request_of(),
        request_of(single(), single()),
        request_of(single(cert_id(b"\x00"))),
        request_of(single(cert_id(b"\xfb"))),
        request_of(single(cert_id(b"\x01" + b"\x00" * 20))),
        request_of(single(), extensions=[nonce(0)]),
        request_of(single(), extensions=[nonce(129)]),
        request_of(single(), extensions=[nonce(16), nonce(16)]),
        request_of(single(), extensions=[extension(UNKNOWN_OID, b"x", critical=True)]),
        request_of(single(extensions=[extension(UNKNOWN_OID, b"x", critical=True)])),
        request_of(
            single(extensions=[extension(NONCE, b"x"), extension(NONCE, b"y", critical=True)])
        ),
        request_of(single(), before=element(0xA0, element(0x02, b"\x01"))),
    ],
    ids=[
        "nothing", "zeros", "cut short", "trailing byte", "BER", "about nothing", "two at once",
        "serial 0", "negative serial", "serial of 21 octets", "empty nonce", "long nonce",
        "two nonces", "critical extension", "critical extension of the single request",
        "the second of two is critical", "version 2",
    ],
)  # fmt: skip
def test_what_cannot_be_answered_as_asked_is_malformed(document: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse_request(document)


def test_an_unknown_hash_names_nobody() -> None:
    request = parse_request(request_of(single(cert_id(algorithm=MD5, size=16))))
    assert request.issuer not in set(issuer_ids(make_root().certificate))


@given(st.binary(max_size=300) | st.builds(
    lambda at, byte: GOOD[:at] + bytes((byte,)) + GOOD[at + 1 :],
    st.integers(0, len(GOOD) - 1), st.integers(0, 255),
))  # fmt: skip
@example(request_of(single(extensions=[b"\x30\x00"])))
@example(request_of(single(element(0x30)), extensions=[b"\x30\x80"]))
def test_hostile_bytes_are_read_or_malformed_and_nothing_else(document: bytes) -> None:
    try:
        request = parse_request(document)
    except MalformedRequest:
        return
    read = ocsp.load_der_ocsp_request(document)
    assert request.serial_number == read.serial_number > 0
    assert request.issuer.key_hash == read.issuer_key_hash
