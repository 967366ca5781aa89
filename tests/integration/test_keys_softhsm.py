"""Signing keys in a real token: what is made there signs real certificates, and stays there."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from meshmint_server.keys import (
    KeyAlgorithmName,
    KeyFault,
    KeyRing,
    SignatureAlgorithm,
    SigningKey,
    capture,
    default_algorithm,
    key_algorithm_of,
    parse_key_uri,
    pkcs11_generation,
    public_key_info,
)
from meshmint_server.keys.uri import Pkcs11Uri
from pkcs11 import (
    Attribute,
    AttributeSensitive,
    AttributeTypeInvalid,
    Mechanism,
    PKCS11Error,
)
from pkcs11.constants import DEFAULT
from support.softhsm import SoftHsm, Token


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


def assert_openssl_accepts(certificate: x509.Certificate, path: Path) -> None:
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    verified = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-check_ss_sig", "-CAfile", str(path), str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize("kind", list(KeyAlgorithmName))
async def test_every_kind_of_key_signs_certificates_that_openssl_accepts(
    ring: KeyRing, kind: KeyAlgorithmName, tmp_path: Path
) -> None:
    key = await ring.generate(f"issuer-{kind}", kind)
    assert key_algorithm_of(key.public_key) is kind
    for bits in (256, 384, 512) if kind.rsa_bits else (0,):
        for use_pss in (False, True) if kind.rsa_bits else (False,):
            algorithm = default_algorithm(key.public_key, bits, use_pss)
            certificate = await self_signed(key, algorithm)
            certificate.verify_directly_issued_by(certificate)
            assert_openssl_accepts(certificate, tmp_path / "certificate.pem")


@pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048", "ed25519"])
async def test_a_generated_key_can_only_sign_and_never_leaves_the_token(
    softhsm: SoftHsm, token: Token, ring: KeyRing, kind: str
) -> None:
    key = await ring.generate("issuer", kind)
    attributes = await key.attributes()
    assert attributes.storage == "pkcs11"
    assert token.label in attributes.token
    assert attributes.is_extractable is False
    assert attributes.was_ever_extractable is False
    assert attributes.is_sensitive is True
    assert attributes.is_local is True
    assert attributes.is_sign_only
    assert attributes.other_uses == ()

    uri = parse_key_uri(key.uri)
    assert isinstance(uri, Pkcs11Uri)
    assert uri.id is not None

    def try_to_take_it() -> None:
        module_token = ring._token
        assert module_token is not None
        private = module_token._key(uri)
        for secret in (Attribute.VALUE, Attribute.PRIVATE_EXPONENT, Attribute.PRIME_1):
            with pytest.raises((AttributeSensitive, AttributeTypeInvalid)):
                private[secret]
        for flag, value in ((Attribute.EXTRACTABLE, True), (Attribute.SENSITIVE, False)):
            with pytest.raises(PKCS11Error):
                private[flag] = value
            with pytest.raises(PKCS11Error):
                private.copy({flag: value})

    assert ring._module is not None
    await ring._module.signer.run(try_to_take_it, timeout=10)

    # And as somebody else sees it, with the PIN in hand.
    tool = ["pkcs11-tool", "--module", str(softhsm.module), "--token-label", token.label]
    listed = subprocess.run(  # noqa: ASYNC221
        [*tool, "--login", "--pin", "env:PIN", "--list-objects", "--type", "privkey"],
        env={**os.environ, **softhsm.environment, "PIN": token.pin},
        capture_output=True,
        text=True,
        check=False,
    )
    assert listed.returncode == 0, listed.stderr
    assert re.search(r"Usage:\s+sign\n", listed.stdout), listed.stdout
    access = r"Access:\s+sensitive, always sensitive, never extractable, local\n"
    assert re.search(access, listed.stdout), listed.stdout


async def test_a_key_that_can_do_more_than_sign_is_destroyed_again(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that ignores what the template asks for."""
    monkeypatch.setitem(pkcs11_generation._PRIVATE_TEMPLATE, Attribute.EXTRACTABLE, True)
    monkeypatch.setitem(pkcs11_generation._NO_OTHER_USE, Attribute.DERIVE, True)
    monkeypatch.setattr(pkcs11_generation, "_ADDITIONS", pkcs11_generation._ADDITIONS[2:])
    with pytest.raises(KeyFault, match="it can be extracted, it can derive") as caught:
        await ring.generate("careless", "ec-p256")
    assert caught.value.kind == "KEY_UNFIT"
    with pytest.raises(KeyFault, match="no private key"):
        await ring.open("pkcs11:object=careless")


@pytest.mark.parametrize(
    ("unknown", "attempts", "outcome"),
    [
        (Attribute.MODIFIABLE, 2, "fit"),
        # Left to SoftHSM's own defaults, the key could do more: that must not pass.
        (Attribute.SIGN_RECOVER, 3, "it can sign-recover"),
        (Attribute.DECRYPT, 4, "it can"),
    ],
)
async def test_a_token_that_does_not_know_an_attribute_is_asked_without_it(
    ring: KeyRing,
    monkeypatch: pytest.MonkeyPatch,
    unknown: Attribute,
    attempts: int,
    outcome: str,
) -> None:
    original = pkcs11_generation._generate_with
    made = 0

    def picky(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        if arguments[3].get(unknown, DEFAULT) is not DEFAULT:
            raise AttributeTypeInvalid
        return original(*arguments)

    monkeypatch.setattr(pkcs11_generation, "_generate_with", picky)
    if outcome == "fit":
        key = await ring.generate("issuer", "ec-p256")
        assert (await key.attributes()).is_sign_only
    else:
        with pytest.raises(KeyFault, match=outcome):
            await ring.generate("issuer", "ec-p256")
    assert made == attempts


async def test_ids_fit_the_token_and_are_not_used_twice(ring: KeyRing) -> None:
    module, token = ring._module, ring._token
    assert module is not None
    assert token is not None

    def draw(manufacturer: str) -> set[bytes]:
        session = token._key_session().session
        return {pkcs11_generation.new_key_id(session, manufacturer) for _ in range(50)}

    long = await module.signer.run(lambda: draw("SoftHSM project"), timeout=10)
    assert {len(key_id) for key_id in long} == {16}
    assert len(long) == 50
    short = await module.signer.run(lambda: draw("Yubico (www.yubico.com)"), timeout=10)
    assert {len(key_id) for key_id in short} == {2}
    assert all(0x0100 <= int.from_bytes(key_id, "big") < 0xFF00 for key_id in short)


async def test_a_kind_that_the_token_does_not_offer_is_named(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pkcs11_generation._GENERATE, "ed25519", Mechanism.X9_42_DH_KEY_PAIR_GEN)
    with pytest.raises(KeyFault, match="does not offer CKM_X9_42_DH_KEY_PAIR_GEN"):
        await ring.generate("issuer", "ed25519")


async def test_a_generated_key_is_found_again_by_its_uri(token: Token, ring: KeyRing) -> None:
    made = await ring.generate("again", "ec-p256")
    other = KeyRing(token.uri)
    try:
        found = await other.open(made.uri, public_key_info(made.public_key))
        assert found.uri == made.uri
        assert public_key_info(found.public_key) == public_key_info(made.public_key)
    finally:
        await other.close()
