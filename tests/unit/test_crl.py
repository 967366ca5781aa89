"""CRLs as documents: right in the eyes of openssl and of a linter, full, delta and in parts."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import example, given
from hypothesis import strategies as st
from meshmint_server.authority import Issuer
from meshmint_server.authority.crl import CrlFrame, build_crl
from meshmint_server.authority.crl_entries import encode_entries
from meshmint_server.keys import default_algorithm
from meshmint_server.store import RevokedSerial
from support.crls import NOON, findings, make_issuer, openssl_text
from support.software_key import SoftwareKey

URL = "http://pki.example.org/mesh"
ISSUER = make_issuer()


def signed(
    issuer: Issuer,
    *revoked: RevokedSerial,
    shard: int = 0,
    base: int | None = None,
    url: str | None = URL,
    has_delta: bool = True,
) -> bytes:
    frame = CrlFrame(
        number=7,
        base_number=base,
        this_update=NOON,
        next_update=NOON + timedelta(days=1),
        url=url,
        has_delta=has_delta,
    )
    algorithm = default_algorithm(issuer.key.public_key)
    unsigned = build_crl(issuer, shard, frame, [encode_entries(revoked)], algorithm)
    assert isinstance(issuer.key, SoftwareKey)
    return unsigned.assemble(issuer.key.sign_now(unsigned.data))


def revoked(serial: int, reason: int = 1) -> RevokedSerial:
    return RevokedSerial(1, "mesh-1", f"{serial:x}", NOON - timedelta(hours=1), reason, NOON)


def extensions(der: bytes) -> dict[type[x509.ExtensionType], tuple[x509.ExtensionType, bool]]:
    return {
        type(one.value): (one.value, one.critical) for one in x509.load_der_x509_crl(der).extensions
    }


def test_full_crl_says_what_rfc_5280_asks_for() -> None:
    issuer = make_issuer()

    der = signed(issuer, revoked(0xABC), revoked(0xDEF, reason=0))

    crl = x509.load_der_x509_crl(der)
    assert crl.is_signature_valid(issuer.key.public_key)
    assert crl.issuer == issuer.certificate.subject
    assert (crl.last_update_utc, crl.next_update_utc) == (NOON, NOON + timedelta(days=1))
    found = extensions(der)
    assert found[x509.CRLNumber] == (x509.CRLNumber(7), False)
    assert found[x509.AuthorityKeyIdentifier] == (issuer.authority_key_identifier, False)
    assert set(found) == {x509.AuthorityKeyIdentifier, x509.CRLNumber, x509.FreshestCRL}
    first, second = crl
    assert first.revocation_date_utc == NOON - timedelta(hours=1)
    reason = first.extensions.get_extension_for_class(x509.CRLReason)
    assert reason.value.reason is x509.ReasonFlags.key_compromise
    assert not reason.critical
    assert not list(second.extensions), "unspecified is said by saying nothing"
    text = openssl_text(der)
    for words in ("X509v3 Freshest CRL", f"URI:{URL}/crl/mesh-1/0/delta.crl", "Key Compromise"):
        assert words in text
    assert findings(der) == []


def test_delta_names_its_base_and_no_fresher_one() -> None:
    der = signed(make_issuer(), revoked(0xABC), base=5)
    found = extensions(der)
    assert found[x509.DeltaCRLIndicator] == (x509.DeltaCRLIndicator(5), True)
    assert x509.FreshestCRL not in found
    assert findings(der) == []


@pytest.mark.parametrize("base", [None, 5])
def test_part_of_a_split_crl_says_which_and_is_not_taken_for_another(base: int | None) -> None:
    der = signed(make_issuer(shards=4, url=URL), revoked(0xABC), shard=3, base=base)
    value, is_critical = extensions(der)[x509.IssuingDistributionPoint]
    assert isinstance(value, x509.IssuingDistributionPoint)
    assert is_critical
    assert value.full_name == [x509.UniformResourceIdentifier(f"{URL}/crl/mesh-1/3.crl")]
    assert value.only_contains_user_certs
    assert findings(der) == []


def test_without_deltas_or_a_url_no_delta_is_named() -> None:
    issuer = make_issuer()
    for der in (signed(issuer, has_delta=False), signed(issuer, url=None)):
        assert set(extensions(der)) == {x509.AuthorityKeyIdentifier, x509.CRLNumber}


def test_empty_crl_has_no_list_at_all() -> None:
    der = signed(make_issuer())
    assert "No Revoked Certificates" in openssl_text(der)  # RFC 5280 section 5.1.2.6
    assert findings(der) == []


@given(
    st.dictionaries(st.integers(1, 2**159 - 1), st.sampled_from([0, 1, 3, 4, 5, 6, 8, 9, 99])),
)
def test_every_revocation_is_listed_whatever_its_reason(entries: dict[int, int]) -> None:
    der = signed(ISSUER, *(revoked(serial, reason) for serial, reason in entries.items()))
    assert [entry.serial_number for entry in x509.load_der_x509_crl(der)] == list(entries)


def as_cryptography_encodes(der: bytes, entries: list[RevokedSerial]) -> bytes:
    """The to-be-signed bytes of the same CRL by cryptography's own hand."""
    crl = x509.load_der_x509_crl(der)
    assert crl.next_update_utc is not None
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(crl.issuer)
        .last_update(crl.last_update_utc)
        .next_update(crl.next_update_utc)
    )
    for extension in crl.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    for entry in entries:
        one = x509.RevokedCertificateBuilder(int(entry.serial_number, 16), entry.revoked_at)
        if entry.reason:
            # 1 to 6, 9 and 10, in the order of the standard
            flag = list(x509.ReasonFlags)[entry.reason - (0 if entry.reason < 7 else 2)]
            one = one.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(one.build())
    assert isinstance(ISSUER.key, SoftwareKey)
    return builder.sign(ISSUER.key.private_key, hashes.SHA256()).tbs_certlist_bytes


@given(
    st.lists(
        st.builds(
            RevokedSerial,
            st.just(1),
            st.just("mesh-1"),
            st.integers(1, 2**160 - 1).map("{:x}".format),
            st.datetimes(datetime(1950, 1, 1), datetime(2300, 1, 1)).map(  # noqa: DTZ001
                lambda at: at.replace(tzinfo=UTC)
            ),
            st.sampled_from([0, 1, 2, 3, 4, 5, 6, 9, 10]),
            st.just(NOON),
        ),
        max_size=40,
    )
)
@example([revoked(number) for number in (1, 0x7F, 0x80, 0xFF, 0x100, 2**159 - 1, 2**159)])
def test_entries_are_encoded_as_cryptography_does(entries: list[RevokedSerial]) -> None:
    der = signed(ISSUER, *entries)
    assert x509.load_der_x509_crl(der).tbs_certlist_bytes == as_cryptography_encodes(der, entries)


def test_hundred_thousand_entries_are_read_by_openssl() -> None:
    der = signed(ISSUER, *(revoked(2**150 + number) for number in range(100_000)))
    text = openssl_text(der)
    assert text.count("Serial Number:") == text.count("Key Compromise") == 100_000
