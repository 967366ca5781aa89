"""RFC 7512: every attribute, strictly; and nothing that would let a store choose code or a PIN."""

from __future__ import annotations

import contextlib
import string
from urllib.parse import quote, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st
from meshmint_server.errors import InvalidRequest
from meshmint_server.keys.uri import (
    FileKeyUri,
    InvalidKeyUri,
    ObjectType,
    Pkcs11Uri,
    parse_key_uri,
    parse_token_uri,
)

CONFIG = (
    "pkcs11:token=meshmint?module-path=/usr/lib/softhsm/libsofthsm2.so"
    "&pin-source=file:/etc/meshmint/pin"
)


def test_every_attribute_is_understood() -> None:
    uri = Pkcs11Uri.parse(
        "pkcs11:token=The%20token;manufacturer=Acme%2C%20Inc.;serial=42;model=M;"
        "library-manufacturer=L;library-version=2.40;library-description=D;object=k%C3%A9y;"
        "type=private;id=%00%FFab;slot-manufacturer=S;slot-description=Slot;slot-id=7"
        "?pin-source=env:PIN&module-path=/a/b%20c.so&module-name=softhsm"
    )
    assert uri == Pkcs11Uri(
        token="The token",
        manufacturer="Acme, Inc.",
        serial="42",
        model="M",
        library_manufacturer="L",
        library_version=(2, 40),
        library_description="D",
        object="kéy",
        type=ObjectType.PRIVATE,
        id=b"\x00\xffab",
        slot_manufacturer="S",
        slot_description="Slot",
        slot_id=7,
        pin_source="env:PIN",
        module_path="/a/b c.so",
        module_name="softhsm",
    )
    assert Pkcs11Uri.parse(str(uri)) == uri


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "starts with"),
        ("PKCS11:token=a", "starts with"),
        ("pkcs11:token=a;token=b", "twice"),
        ("pkcs11:token=", "empty"),
        ("pkcs11:token", "where one of"),
        ("pkcs11:token=a;", "where one of"),
        ("pkcs11:;token=a", "where one of"),
        ("pkcs11:x-vendor=a", "where one of"),
        ("pkcs11:Token=a", "where one of"),
        ("pkcs11:module-path=/a", "'module-path'"),
        ("pkcs11:token=a?", "where one of"),
        ("pkcs11:token=a?token=b", "'token'"),
        ("pkcs11:token=a%2", "hexadecimal"),
        ("pkcs11:token=a%zz", "hexadecimal"),
        ("pkcs11:token=a b", "percent-encoded"),
        ("pkcs11:token=a/b", "percent-encoded"),
        ("pkcs11:token=é", "percent-encoded"),
        ("pkcs11:token=a\n", "percent-encoded"),
        ("pkcs11:token=%FF", "not UTF-8"),
        ("pkcs11:token=a%00", "control character"),
        ("pkcs11:token=a%0A", "control character"),
        ("pkcs11:token=" + "a" * 33, "longer than 32 bytes"),
        ("pkcs11:type=key", "'type' is one of"),
        ("pkcs11:slot-id=-1", "decimal"),
        ("pkcs11:slot-id=1e3", "decimal"),
        ("pkcs11:slot-id=99999999999999999999", "decimal"),
        ("pkcs11:library-version=256", "major"),
        ("pkcs11:library-version=1.2.3", "major"),
        ("pkcs11:id=", "empty"),
        ("pkcs11:?pin-source=file:relative", "pin-source"),
        ("pkcs11:?pin-source=https://x/", "pin-source"),
        ("pkcs11:?pin-source=%7Ccommand", "pin-source"),
        ("pkcs11:object=" + "a" * 5000, "longer than"),
    ],
)
def test_what_is_not_understood_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidKeyUri, match=reason):
        Pkcs11Uri.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:token=a?pin-value=s3cret",
        "pkcs11:token=a?module-path=/m.so&pin-value=s3cret",
        "pkcs11:pin-value=s3cret",
        "pkcs11:token=a?pin-source=s3cret",
        "pkcs11:token=a?s3cret",
        "pkcs11:token=a?S3CRET s3cret=1",
    ],
)
def test_a_pin_in_a_uri_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidKeyUri) as caught:
        parse_token_uri(text)
    assert "s3cret" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("pkcs11:token=a", "module-path"),
        ("pkcs11:token=a?module-path=m.so&pin-source=env:P", "absolute"),
        ("pkcs11:token=a?module-path=/a/../m.so&pin-source=env:P", "absolute"),
        ("pkcs11:token=a?module-path=/m.so", "pin-source"),
        ("pkcs11:token=a?module-path=/m.so&module-name=m&pin-source=env:P", "module-name"),
        ("pkcs11:?module-path=/m.so&pin-source=env:P", "'token='"),
        ("pkcs11:token=a;object=k?module-path=/m.so&pin-source=env:P", "leave 'object'"),
    ],
)
def test_the_configuration_must_name_module_token_and_pin_source(text: str, reason: str) -> None:
    with pytest.raises(InvalidKeyUri, match=reason):
        parse_token_uri(text)


def test_the_configuration_of_the_documentation_is_accepted() -> None:
    uri = parse_token_uri(CONFIG)
    assert uri.module_path == "/usr/lib/softhsm/libsofthsm2.so"
    assert uri.pin_source == "file:/etc/meshmint/pin"
    assert str(uri.token_part) == "pkcs11:token=meshmint"


@pytest.mark.parametrize(
    "text",
    [
        "pkcs11:token=a;object=k?module-path=/tmp/evil.so",
        "pkcs11:token=a;object=k?module-name=evil",
        "pkcs11:token=a;object=k?pin-source=file:/etc/shadow",
        "pkcs11:token=a",
        "pkcs11:token=a;object=k;type=cert",
        "file:../issuer.pem",
        "file:/etc/issuer.pem",
        "file:a/b.pem",
        "file:.hidden",
        "file:",
        "file:a.pem\n",
        "file:a%2Fb",
        "http://x/",
        "issuer.pem",
    ],
)
def test_a_store_cannot_choose_code_pins_or_places(text: str) -> None:
    with pytest.raises(InvalidKeyUri):
        parse_key_uri(text)


def test_key_uris_of_both_kinds_are_accepted() -> None:
    key = parse_key_uri("pkcs11:token=t;object=k;type=private;id=%01")
    assert isinstance(key, Pkcs11Uri)
    assert key.id == b"\x01"
    file = parse_key_uri("file:issuer-1.pem")
    assert file == FileKeyUri("issuer-1.pem")
    assert str(file) == "file:issuer-1.pem"


def test_the_error_is_one_of_the_services_own_and_a_value_error() -> None:
    assert issubclass(InvalidKeyUri, InvalidRequest)
    assert issubclass(InvalidKeyUri, ValueError)


def labels(most: int) -> st.SearchStrategy[str | None]:
    text = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=most)
    return st.none() | text.filter(lambda value: len(value.encode()) <= most)


@given(
    st.builds(
        Pkcs11Uri,
        token=labels(32),
        manufacturer=labels(32),
        serial=labels(16),
        model=labels(16),
        object=labels(200),
        library_version=st.none() | st.tuples(st.integers(0, 255), st.integers(0, 255)),
        type=st.none() | st.sampled_from(ObjectType),
        id=st.none() | st.binary(min_size=1, max_size=64),
        slot_id=st.none() | st.integers(0, 2**64 - 1),
        module_path=labels(64),
    )
)
def test_what_is_written_is_read_back(uri: Pkcs11Uri) -> None:
    text = str(uri)
    assert text.isascii()
    assert Pkcs11Uri.parse(text) == uri


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for parse in (Pkcs11Uri.parse, parse_token_uri, parse_key_uri):
        with contextlib.suppress(InvalidKeyUri):
            parse("pkcs11:" + text)  # type: ignore[operator]


@given(st.text(alphabet=string.printable, max_size=30))
def test_a_key_uri_never_has_a_query(text: str) -> None:
    try:
        uri = parse_key_uri("pkcs11:object=k" + text)
    except InvalidKeyUri:
        return
    assert "?" not in str(uri)
    assert isinstance(uri, Pkcs11Uri)
    assert uri.module_path is None
    assert uri.pin_source is None


@given(st.binary(min_size=1, max_size=20))
def test_percent_decoding_agrees_with_the_standard_library(raw: bytes) -> None:
    encoded = quote(raw, safe="")
    parsed = Pkcs11Uri.parse(f"pkcs11:id={encoded}")
    assert parsed.id == raw == unquote_to_bytes(encoded)
