"""To-be-signed bytes from a key that signs nothing, and what is assembled around them."""

from __future__ import annotations

import copy
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from meshmint_server.errors import InvalidRequest
from meshmint_server.keys import (
    KeyAlgorithmName,
    Scheme,
    SignatureAlgorithm,
    ToBeSigned,
    capture,
    default_algorithm,
    key_algorithm_of,
    load_public_key,
    public_key_info,
)
from meshmint_server.keys.file import PrivateKey, _sign

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "capture")])
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
RSA_KEY = rsa.generate_private_key(65537, 2048)
KEYS: list[tuple[PrivateKey, SignatureAlgorithm]] = [
    *(
        (key, default_algorithm(key.public_key()))
        for key in (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP384R1()),
            ec.generate_private_key(ec.SECP521R1()),
            ed25519.Ed25519PrivateKey.generate(),
        )
    ),
    *(
        (RSA_KEY, default_algorithm(RSA_KEY.public_key(), bits, use_pss))
        for bits in (0, 256, 384, 512)
        for use_pss in (False, True)
    ),
]


def builder(key: PrivateKey, extra: int = 0) -> x509.CertificateBuilder:
    made = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + datetime.timedelta(days=1))
    )
    if extra:
        names = [x509.DNSName(f"host-{number}.example.org") for number in range(extra)]
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return made


@pytest.mark.parametrize("extra", [0, 1, 3, 10, 3000], ids=lambda extra: f"{extra}-names")
@pytest.mark.parametrize(("key", "algorithm"), KEYS, ids=lambda value: str(value)[:24])
def test_a_certificate_is_the_same_as_one_signed_in_place(
    key: PrivateKey, algorithm: SignatureAlgorithm, extra: int
) -> None:
    made = builder(key, extra)
    wanted = capture(
        lambda private, hash_, pad: made.sign(private, hash_, rsa_padding=pad),
        key.public_key(),
        algorithm,
    )
    assembled = x509.load_der_x509_certificate(wanted.assemble(_sign(key, wanted.data, algorithm)))
    direct = made.sign(key, algorithm.hash, rsa_padding=algorithm.rsa_padding)
    assert assembled.tbs_certificate_bytes == wanted.data == direct.tbs_certificate_bytes
    assert assembled.signature_algorithm_oid == direct.signature_algorithm_oid
    assembled.verify_directly_issued_by(assembled)
    if isinstance(key, ed25519.Ed25519PrivateKey) or (
        isinstance(key, rsa.RSAPrivateKey) and algorithm.scheme is Scheme.RSA_PKCS1
    ):
        # These schemes give the same signature each time: the whole encoding must agree.
        der = serialization.Encoding.DER
        assert assembled.public_bytes(der) == direct.public_bytes(der)


@pytest.mark.parametrize(("key", "algorithm"), KEYS, ids=lambda value: str(value)[:24])
def test_a_csr_and_a_crl_can_be_captured_too(
    key: PrivateKey, algorithm: SignatureAlgorithm
) -> None:
    csr = x509.CertificateSigningRequestBuilder().subject_name(NAME)
    wanted = capture(
        lambda private, hash_, pad: csr.sign(private, hash_, rsa_padding=pad),
        key.public_key(),
        algorithm,
    )
    der = wanted.assemble(_sign(key, wanted.data, algorithm))
    assert x509.load_der_x509_csr(der).is_signature_valid

    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(NAME)
        .last_update(START)
        .next_update(START + datetime.timedelta(days=1))
    )
    wanted = capture(
        lambda private, hash_, pad: crl.sign(private, hash_, rsa_padding=pad),
        key.public_key(),
        algorithm,
    )
    der = wanted.assemble(_sign(key, wanted.data, algorithm))
    assert x509.load_der_x509_crl(der).is_signature_valid(key.public_key())


def test_a_capturing_key_has_nothing_private_to_give() -> None:
    for key, algorithm in KEYS:
        kept: list[object] = []

        def build(
            private: object, hash_: object, pad: object, kept: list[object] = kept
        ) -> x509.Certificate:
            kept.append(private)
            return builder(RSA_KEY).sign(private, hash_, rsa_padding=pad)  # type: ignore[arg-type]

        capture(build, key.public_key(), algorithm)
        (private,) = kept
        for method in ("private_bytes", "private_numbers", "private_bytes_raw", "decrypt"):
            if hasattr(private, method):
                with pytest.raises((TypeError, AttributeError)):
                    getattr(private, method)()
        with pytest.raises(TypeError):
            copy.copy(private)
        with pytest.raises(TypeError):
            copy.deepcopy(private)


def test_a_builder_that_signs_with_something_else_is_refused() -> None:
    key, algorithm = KEYS[0]
    real = builder(key).sign(key, hashes.SHA256())
    with pytest.raises(ValueError, match="did not sign"):
        capture(lambda *_: real, key.public_key(), algorithm)


def test_a_builder_that_returns_something_else_than_it_signed_is_refused() -> None:
    key, algorithm = KEYS[0]
    real = builder(key).sign(key, hashes.SHA256())

    def build(private: object, hash_: object, pad: object) -> x509.Certificate:
        builder(key, 2).sign(private, hash_, rsa_padding=pad)  # type: ignore[arg-type]
        return real

    with pytest.raises(ValueError, match="something else"):
        capture(build, key.public_key(), algorithm)


def test_an_empty_signature_is_never_assembled() -> None:
    with pytest.raises(ValueError, match="empty"):
        ToBeSigned(b"\x30\x00", b"\x30\x00").assemble(b"")


def test_the_hash_fits_the_key_and_rsa_follows_the_role() -> None:
    p384 = ec.generate_private_key(ec.SECP384R1()).public_key()
    assert default_algorithm(p384, 256).hash_name == "sha384"
    assert default_algorithm(RSA_KEY.public_key(), 384).hash_name == "sha384"
    pss = default_algorithm(RSA_KEY.public_key(), 512, use_pss=True).rsa_padding
    assert isinstance(pss, padding.PSS)
    assert pss._salt_length == 64
    with pytest.raises(InvalidRequest, match="signature_bits"):
        default_algorithm(RSA_KEY.public_key(), 224)


def test_verification_never_accepts_another_scheme() -> None:
    for key, algorithm in KEYS:
        signature = _sign(key, b"data", algorithm)
        for other, other_algorithm in KEYS:
            holds = other_algorithm.is_valid(other.public_key(), signature, b"data")
            assert holds == (other is key and other_algorithm == algorithm)
        assert not algorithm.is_valid(key.public_key(), signature, b"date")


def test_public_keys_are_read_and_weak_or_strange_ones_refused() -> None:
    for key, _ in KEYS:
        der = public_key_info(key.public_key())
        assert public_key_info(load_public_key(der)) == der
    assert key_algorithm_of(RSA_KEY.public_key()) is KeyAlgorithmName.RSA_2048
    for strange in (
        rsa.generate_private_key(65537, 1024).public_key(),  # noqa: S505  must be refused
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        dsa.generate_private_key(2048).public_key(),
    ):
        der = strange.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        with pytest.raises(InvalidRequest):
            load_public_key(der)
    with pytest.raises(InvalidRequest, match="SubjectPublicKeyInfo"):
        load_public_key(b"\x30\x00")
