"""Signing keys in a real token: what is made there signs real certificates, and stays there."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from meshmint_server.keys import (
    KeyAlgorithmName,
    KeyRing,
    SignatureAlgorithm,
    SigningKey,
    capture,
    default_algorithm,
    public_key_info,
)
from support.softhsm import Token


@pytest.fixture
async def ring(token: Token) -> AsyncIterator[KeyRing]:
    ring = KeyRing(token.uri)
    yield ring
    await ring.close()


async def self_signed(key: SigningKey, algorithm: SignatureAlgorithm) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Keys test")])
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
        )
        .add_extension(ski, critical=False)
    )
    wanted = capture(
        lambda private, hash_, padding: builder.sign(private, hash_, rsa_padding=padding),
        key.public_key,
        algorithm,
    )
    signature = await key.sign(wanted.data, algorithm)
    return x509.load_der_x509_certificate(wanted.assemble(signature))


@pytest.mark.parametrize("use_pss", [False, True], ids=["pkcs1", "pss"])
@pytest.mark.parametrize("kind", list(KeyAlgorithmName))
async def test_every_kind_of_key_signs_a_certificate_that_openssl_accepts(
    ring: KeyRing, kind: KeyAlgorithmName, use_pss: bool, tmp_path: Path
) -> None:
    if use_pss and not kind.rsa_bits:
        use_pss = False
    key = await ring.generate(f"issuer-{kind}", kind)
    certificate = await self_signed(key, default_algorithm(key.public_key, use_pss=use_pss))
    certificate.verify_directly_issued_by(certificate)
    pem = tmp_path / "certificate.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    verified = subprocess.run(  # noqa: ASYNC221
        ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-CAfile", str(pem), str(pem)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr


async def test_a_generated_key_is_found_again_by_its_uri(token: Token, ring: KeyRing) -> None:
    made = await ring.generate("again", "ec-p256")
    other = KeyRing(token.uri)
    try:
        found = await other.open(made.uri, public_key_info(made.public_key))
        assert found.uri == made.uri
        assert public_key_info(found.public_key) == public_key_info(made.public_key)
    finally:
        await other.close()
