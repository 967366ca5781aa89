"""Key files: encrypted, for their owner only, never written over."""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshmint_server.keys import (
    InvalidKeyUri,
    KeyAlgorithmName,
    KeyFault,
    KeyRing,
    KeySettings,
    default_algorithm,
    public_key_info,
)

PASSPHRASE = "correct horse battery staple"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(PASSPHRASE + "\n", encoding="utf-8")
    return path


@pytest.fixture
async def ring(tmp_path: Path, secret: Path) -> AsyncIterator[KeyRing]:
    (tmp_path / "keys").mkdir()
    ring = KeyRing(None, tmp_path / "keys", f"file:{secret}")
    yield ring
    await ring.close()


@pytest.mark.parametrize(
    "kind", [kind for kind in KeyAlgorithmName if kind not in ("rsa-3072", "rsa-4096")]
)
async def test_a_key_is_made_stored_and_found_again(
    ring: KeyRing, tmp_path: Path, kind: KeyAlgorithmName
) -> None:
    made = await ring.generate("issuer-1", kind)
    assert made.uri == "file:issuer-1.pem"
    path = tmp_path / "keys" / "issuer-1.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    found = await ring.open(made.uri, public_key_info(made.public_key))
    algorithm = default_algorithm(found.public_key)
    signature = await found.sign(b"message", algorithm)
    assert algorithm.is_valid(made.public_key, signature, b"message")
    assert (await found.attributes()).is_extractable


async def test_an_existing_file_is_not_written_over(ring: KeyRing, tmp_path: Path) -> None:
    await ring.generate("issuer", "ed25519")
    before = (tmp_path / "keys" / "issuer.pem").read_bytes()
    with pytest.raises(KeyFault, match="not written over"):
        await ring.generate("issuer", "ed25519")
    assert (tmp_path / "keys" / "issuer.pem").read_bytes() == before


async def test_a_link_is_not_followed_when_writing(ring: KeyRing, tmp_path: Path) -> None:
    (tmp_path / "keys" / "issuer.pem").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFault):
        await ring.generate("issuer", "ed25519")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o601])
async def test_a_file_that_others_may_reach_is_refused(
    ring: KeyRing, tmp_path: Path, mode: int
) -> None:
    key = await ring.generate("issuer", "ed25519")
    (tmp_path / "keys" / "issuer.pem").chmod(mode)
    with pytest.raises(KeyFault, match=f"mode {mode:04o}"):
        await ring.open(key.uri)


async def test_the_mode_does_not_depend_on_the_umask(ring: KeyRing, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await ring.generate("issuer", "ed25519")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys" / "issuer.pem").stat().st_mode) == 0o600


async def test_a_wrong_passphrase_is_refused_and_not_shown(ring: KeyRing, secret: Path) -> None:
    key = await ring.generate("issuer", "ed25519")
    secret.write_text("another passphrase", encoding="utf-8")
    with pytest.raises(KeyFault, match="cannot be decrypted") as caught:
        await ring.open(key.uri)
    assert caught.value.reason == "PASSPHRASE_REFUSED"
    assert "another passphrase" not in "".join(traceback.format_exception(caught.value))
    secret.write_text(PASSPHRASE, encoding="utf-8")
    await ring.open(key.uri)


@pytest.mark.parametrize("content", [b"", b"\n"])
async def test_an_empty_passphrase_is_refused(ring: KeyRing, secret: Path, content: bytes) -> None:
    secret.write_bytes(content)
    with pytest.raises(KeyFault, match=r"passphrase from .* is empty"):
        await ring.generate("issuer", "ed25519")


async def test_a_key_without_encryption_is_refused(ring: KeyRing, tmp_path: Path) -> None:
    path = tmp_path / "keys" / "plain.pem"
    path.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    with pytest.raises(KeyFault, match="not an encrypted"):
        await ring.open("file:plain.pem")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: None, "cannot be opened"),
        (lambda path: path.mkdir(mode=0o700), "not a regular file"),
        (lambda path: os.mkfifo(path, 0o600), "not a regular file"),
        (lambda path: path.write_bytes(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA"), "decrypted"),
        (lambda path: path.write_bytes(b"x" * 100_000), "too large"),
    ],
    ids=["missing", "directory", "fifo", "cut-short", "huge"],
)
async def test_what_is_no_key_file_is_refused(
    ring: KeyRing, tmp_path: Path, make: object, reason: str
) -> None:
    path = tmp_path / "keys" / "odd.pem"
    before = os.umask(0o077)
    try:
        make(path)  # type: ignore[operator]
    finally:
        os.umask(before)
    with pytest.raises(KeyFault, match=reason):
        await ring.open("file:odd.pem")


async def test_another_key_than_the_stored_one_is_refused(ring: KeyRing) -> None:
    one = await ring.generate("one", "ed25519")
    two = await ring.generate("two", "ed25519")
    with pytest.raises(KeyFault, match="not the key that the issuer was made with"):
        await ring.open(one.uri, public_key_info(two.public_key))


@pytest.mark.parametrize("label", ["", "../x", "a/b", ".hidden", "a\nb", "a" * 65])
async def test_a_label_that_is_no_file_name_is_refused(ring: KeyRing, label: str) -> None:
    with pytest.raises(InvalidKeyUri):
        await ring.generate(label, "ed25519")


async def test_a_directory_that_is_missing_is_named(tmp_path: Path, secret: Path) -> None:
    ring = KeyRing(None, tmp_path / "nowhere", f"file:{secret}")
    try:
        with pytest.raises(KeyFault, match="nowhere"):
            await ring.generate("issuer", "ed25519")
    finally:
        await ring.close()


async def test_without_a_place_for_it_a_key_is_refused(ring: KeyRing) -> None:
    with pytest.raises(KeyFault, match="no token is configured"):
        await ring.open("pkcs11:object=x")
    with pytest.raises(InvalidKeyUri, match="kind of key"):
        await ring.generate("issuer", "rsa-1024")
    empty = KeyRing()
    with pytest.raises(KeyFault, match="No keys are configured"):
        await empty.generate("issuer", "ed25519")
    await empty.close()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"file_directory": "/keys"},
        {"passphrase_source": "env:P"},
        {"file_directory": "/keys", "passphrase_source": PASSPHRASE},
        {"file_directory": "/keys", "passphrase_source": "env:P", "threads": 2},
        {"pkcs11": "pkcs11:token=t?module-path=/m.so&pin-source=env:P", "threads": 2},
        {"pkcs11": "pkcs11:token=t?module-path=/m.so&pin-value=1234"},
        {"pkcs11": "pkcs11:token=t?module-path=/m.so&pin-source=env:P", "pin": "1234"},
    ],
)
def test_settings_that_do_not_hold_together_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  pydantic's, with our texts inside
        KeySettings.model_validate(settings)
    # What stands in the wrong place may be a secret: pydantic must not repeat it.
    assert PASSPHRASE not in str(caught.value)
    assert "1234" not in str(caught.value)


async def test_settings_build_a_ring(tmp_path: Path, secret: Path) -> None:
    settings = KeySettings(file_directory=tmp_path, passphrase_source=f"file:{secret}")
    ring = settings.build()
    assert (await ring.generate("issuer", "ed25519")).uri == "file:issuer.pem"
    assert not ring.is_stuck()
    assert ring.health().waiting == 0
    await ring.close()
    assert KeySettings(
        pkcs11="pkcs11:token=t?module-path=/lib/p11-kit-proxy.so&pin-source=env:P", threads=2
    )
