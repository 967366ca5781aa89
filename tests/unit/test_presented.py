"""What strangers present as a certificate is read or refused, and nothing else escapes.

Warnings are errors in this suite, so a warning of the parser would be seen too.
"""

from __future__ import annotations

import base64

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint_server.errors import InvalidRequest, NotFound
from meshmint_server.grpc_api.translate import revocation_request
from meshmint_server.issuance import RevocationReason, read_certificate
from meshmint_server.issuance.presented import find_signer
from support.leaves import make_issuer, make_leaf, to_der, to_pem
from support.pki import make_root

AUTHORITY = make_root()
ISSUER = make_issuer(AUTHORITY)
LEAF = make_leaf(AUTHORITY, serial_number=1 << 158)
PEM = to_pem(LEAF)


def armour(der: bytes, label: str = "CERTIFICATE") -> str:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n"


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Changes, cuts out, doubles or inserts a few bytes of a sound certificate."""
    data = bytearray(to_der(LEAF))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, len(data) - 1))
        kind = draw(st.sampled_from(["set", "flip", "cut", "double", "insert"]))
        if kind == "set":
            data[position : position + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "flip":
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[position : position + draw(st.integers(1, 8))]
        elif kind == "double":
            data[position:position] = data[position : position + draw(st.integers(1, 16))]
        else:
            data[position:position] = draw(st.binary(min_size=1, max_size=4))
    return bytes(data)


def signed_by_us(pem: str) -> x509.Certificate | None:
    """The certificate, if it is read and one of our issuers signed it."""
    try:
        certificate = read_certificate(pem)
        find_signer(certificate, [ISSUER])
    except (InvalidRequest, NotFound):
        return None
    return certificate


def test_a_sound_certificate_is_read_whatever_white_space_stands_around_it() -> None:
    for variant in (PEM, "\n" + PEM + "\n\n", PEM.replace("\n", "\r\n"), PEM.rstrip("\n")):
        assert signed_by_us(variant) == LEAF


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("hello", "not one PEM block"),
        (PEM + PEM, "one PEM block"),
        ("# a comment\n" + PEM, "not one PEM block"),
        (PEM + "x", "not one PEM block"),
        (armour(to_der(LEAF), "CERTIFICATE REQUEST"), "not one PEM block of type CERTIFICATE"),
        (armour(to_der(LEAF), "PRIVATE KEY"), "not one PEM block of type CERTIFICATE"),
        (armour(to_der(LEAF) + b"\0"), "no X.509 certificate"),
        (armour(to_der(LEAF)[:-1]), "no X.509 certificate"),
        (armour(b""), "no X.509 certificate"),
        (PEM.replace("\n-----END", "A\n-----END"), "not base64"),
        (armour(bytes(600_000)), "at most 512 KiB"),
        ("A" * 2_000_000, "at most 512 KiB"),
    ],
)
def test_anything_but_one_certificate_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as caught:
        read_certificate(text)
    assert [violation.field for violation in caught.value.violations] == ["certificate"]


def der_value(tag: int, content: bytes) -> bytes:
    size = len(content)
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return (
        bytes([tag])
        + (bytes([size]) if size < 128 else bytes([128 | len(octets)]) + octets)
        + (content)
    )


def with_serial(serial: bytes) -> bytes:
    """LEAF with another serial number, two's complement; the signature does not hold any more."""
    signed = LEAF.tbs_certificate_bytes
    rest = to_der(LEAF).partition(signed)[2]
    inner = signed[signed.index(b"\xa0\x03\x02\x01\x02") :]  # begins with the version
    sound = b"\x02\x14" + LEAF.serial_number.to_bytes(20, "big")
    assert inner.count(sound) == 1
    return der_value(0x30, der_value(0x30, inner.replace(sound, der_value(0x02, serial))) + rest)


@pytest.mark.parametrize("serial", [0, -5])
def test_a_serial_number_that_is_not_positive_is_refused(serial: int) -> None:
    with pytest.raises(InvalidRequest, match="serial number is not positive"):
        read_certificate(armour(with_serial(serial.to_bytes(1, "big", signed=True))))


def test_a_serial_number_that_would_fill_the_log_is_refused() -> None:
    # As long as one that is given by itself may be, and not a digit more.
    longest = read_certificate(armour(with_serial(b"\0" + b"\xff" * 32)))
    assert longest.serial_number == (1 << 256) - 1
    for octets in (b"\x01" + bytes(32), b"\x7f" * 300_000):
        with pytest.raises(InvalidRequest, match="serial number is longer than 32 octets"):
            read_certificate(armour(with_serial(octets)))


@given(mutated())
@settings(max_examples=400, deadline=None)
def test_a_certificate_that_was_changed_is_never_taken_for_ours(der: bytes) -> None:
    certificate = signed_by_us(armour(der))
    assert certificate is None or certificate.tbs_certificate_bytes == LEAF.tbs_certificate_bytes


@given(st.text(max_size=200) | st.binary(max_size=200).map(armour))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_the_reader_fail(text: str) -> None:
    assert signed_by_us(text) is None


def refused_fields(request: pb.RevokeRequest) -> list[str]:
    """The fields that a request is refused for; none if it is read."""
    try:
        revocation_request(request)
    except InvalidRequest as error:
        return [violation.field for violation in error.violations]
    return []


@given(st.text(max_size=80) | st.text("0123456789abcdefABCDEF:-", max_size=80))
@settings(max_examples=300, deadline=None)
def test_a_serial_number_is_normal_hexadecimal_or_refused(text: str) -> None:
    request = pb.RevokeRequest(serial_number=text)
    if refused_fields(request):
        assert refused_fields(request) == ["serial_number"]
    else:
        digits = text.replace(":", "").replace("-", "")
        assert revocation_request(request).serial_number == f"{int(digits, 16):x}"


@given(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 12))
def test_a_reason_is_one_of_the_api_or_refused(number: int) -> None:
    request = pb.RevokeRequest(serial_number="1", reason=number)  # type: ignore[arg-type]
    is_known = number in pb.RevocationReason.values()
    assert refused_fields(request) == ([] if is_known else ["reason"])


def test_the_reasons_are_those_of_the_api_with_the_numbers_of_the_rfc() -> None:
    assert {
        f"REVOCATION_REASON_{reason.name}": reason.value for reason in RevocationReason
    } == dict(pb.RevocationReason.items())


def test_a_request_that_names_no_certificate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="serial_number or certificate"):
        revocation_request(pb.RevokeRequest())
