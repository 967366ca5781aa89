"""Tokens and keys that are not as the configuration says. Each is refused with what to do."""

from __future__ import annotations

import os
import traceback
from collections.abc import AsyncIterator
from pathlib import Path

import pkcs11
import pytest
from meshmint_server.keys import InvalidKeyUri, KeyFault, KeyRing, parse_key_uri, public_key_info
from meshmint_server.keys.uri import Pkcs11Uri
from support.softhsm import SoftHsm, Token


@pytest.fixture
async def ring(token: Token) -> AsyncIterator[KeyRing]:
    ring = KeyRing(token.uri)
    yield ring
    await ring.close()


def pin_tries_are_low(ring: KeyRing) -> bool:
    assert ring._token is not None
    return bool(ring._token._token().flags & pkcs11.TokenFlag.USER_PIN_COUNT_LOW)


async def test_a_wrong_pin_is_tried_once_and_never_shown(
    token: Token, ring: KeyRing, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logins = 0
    original = pkcs11.exceptions.PinIncorrect.__init__

    def counted(self: Exception, *args: object) -> None:
        nonlocal logins
        logins += 1
        original(self, *args)

    monkeypatch.setattr(pkcs11.exceptions.PinIncorrect, "__init__", counted)
    token.pin_file.write_text("not-the-pin\n", encoding="utf-8")
    for _ in range(5):
        with pytest.raises(KeyFault) as caught:
            await ring.generate("issuer", "ec-p256")
        assert caught.value.reason == "PIN_REFUSED"
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "not-the-pin" not in shown
        assert ring._token is not None
        ring._token._backoff.reset()
    assert logins == 1
    assert "not-the-pin" not in caplog.text

    token.pin_file.write_text(token.pin, encoding="utf-8")
    assert (await ring.generate("issuer", "ec-p256")).uri.startswith(f"pkcs11:token={token.label};")
    assert token.pin not in caplog.text


async def test_a_pin_from_the_environment_opens_the_token(
    token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESHMINT_TEST_PIN", token.pin)
    uri = token.uri.replace(f"file:{token.pin_file}", "env:MESHMINT_TEST_PIN")
    ring = KeyRing(uri)
    try:
        await ring.generate("issuer", "ec-p256")
    finally:
        await ring.close()


async def test_a_missing_pin_file_is_named(token: Token, ring: KeyRing) -> None:
    token.pin_file.unlink()
    with pytest.raises(KeyFault, match=r"PIN cannot be read from file:.*No such file"):
        await ring.generate("issuer", "ec-p256")


async def test_a_missing_key_is_refused_and_does_not_stop_the_others(ring: KeyRing) -> None:
    key = await ring.generate("issuer", "ec-p256")
    for name in ("object=nobody", "id=%01%02", "object=nobody;id=%01"):
        with pytest.raises(KeyFault, match="no private key") as caught:
            await ring.open(f"pkcs11:{name}")
        assert caught.value.reason == "KEY_NOT_FOUND"
    await ring.open(key.uri)


async def test_two_keys_of_one_label_are_refused_unless_named_by_id(ring: KeyRing) -> None:
    first = await ring.generate("twin", "ec-p256")
    second = await ring.generate("twin", "ec-p256")
    with pytest.raises(KeyFault, match="2 private keys that match") as caught:
        await ring.open("pkcs11:object=twin")
    assert caught.value.reason == "KEY_AMBIGUOUS"
    for key in (first, second):
        found = await ring.open(key.uri)
        assert public_key_info(found.public_key) == public_key_info(key.public_key)


async def test_a_key_other_than_the_stored_one_is_refused(ring: KeyRing) -> None:
    key = await ring.generate("one", "ec-p256")
    other = await ring.generate("two", "ec-p256")
    with pytest.raises(KeyFault, match="not the one that the issuer was made with"):
        await ring.open(key.uri, public_key_info(other.public_key))


async def test_a_private_key_that_does_not_fit_its_public_object_is_found_out(
    ring: KeyRing,
) -> None:
    """The public object is another key's: only the test signature can tell."""
    key = await ring.generate("one", "ec-p256")
    other = await ring.generate("two", "ec-p256")
    wanted, stranger = parse_key_uri(key.uri), parse_key_uri(other.uri)
    assert isinstance(wanted, Pkcs11Uri)
    assert isinstance(stranger, Pkcs11Uri)
    module, token = ring._module, ring._token
    assert module is not None
    assert token is not None

    def swap() -> None:
        token._key_session()
        session = token._token().open(rw=True)
        public = {pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY}
        for item in list(session.get_objects({**public, pkcs11.Attribute.ID: wanted.id})):
            item.destroy()
        for item in list(session.get_objects({**public, pkcs11.Attribute.ID: stranger.id})):
            item[pkcs11.Attribute.ID] = wanted.id
        session.close()

    await module.signer.run(swap, timeout=5)
    with pytest.raises(KeyFault, match="does not belong to the public key"):
        await ring.open(key.uri)


async def test_a_key_without_a_public_object_needs_the_stored_public_key(ring: KeyRing) -> None:
    key = await ring.generate("issuer", "ec-p256")
    parsed = parse_key_uri(key.uri)
    assert isinstance(parsed, Pkcs11Uri)
    module, token = ring._module, ring._token
    assert module is not None
    assert token is not None

    def destroy_public() -> None:
        session = token._token().open(rw=True)
        wanted = {
            pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PUBLIC_KEY,
            pkcs11.Attribute.ID: parsed.id,
        }
        for item in list(session.get_objects(wanted)):
            item.destroy()
        session.close()

    await module.signer.run(destroy_public, timeout=5)
    with pytest.raises(KeyFault, match="none is stored"):
        await ring.open(key.uri)
    assert token is not None
    token._key_backoffs.clear()
    opened = await ring.open(key.uri, public_key_info(key.public_key))
    assert opened.uri == key.uri


async def test_an_unknown_token_and_a_missing_module_are_named(token: Token) -> None:
    ring = KeyRing(token.uri.replace(token.label, "nobody"))
    try:
        with pytest.raises(KeyFault, match="no token that matches pkcs11:token=nobody"):
            await ring.open("pkcs11:object=x")
    finally:
        await ring.close()
    ring = KeyRing(token.uri.replace(str(token.module), "/nowhere/module.so"))
    try:
        with pytest.raises(KeyFault, match=r"no PKCS#11 module at /nowhere/module\.so"):
            await ring.open("pkcs11:object=x")
    finally:
        await ring.close()


async def test_a_file_that_is_no_module_is_refused(token: Token, tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(b"not a library")
    ring = KeyRing(token.uri.replace(str(token.module), str(module)))
    try:
        with pytest.raises(KeyFault):
            await ring.open("pkcs11:object=x")
    finally:
        await ring.close()


async def test_a_key_of_another_token_is_not_looked_for_in_this_one(
    softhsm: SoftHsm, token: Token, ring: KeyRing
) -> None:
    key = await ring.generate("issuer", "ec-p256")
    elsewhere = key.uri.replace(token.label, softhsm.make_token().label)
    with pytest.raises(KeyFault, match="in another token"):
        await ring.open(elsewhere)


def test_more_threads_need_the_proxy(token: Token) -> None:
    with pytest.raises(InvalidKeyUri, match=r"p11-kit-proxy\.so"):
        KeyRing(token.uri, threads=2)


async def test_a_forked_child_is_refused(ring: KeyRing) -> None:
    await ring.generate("issuer", "ec-p256")
    assert ring._module is not None
    signer = ring._module.signer
    signer._process = os.getpid() + 1  # as it looks from a child
    try:
        with pytest.raises(KeyFault, match="another process"):
            await ring.generate("other", "ec-p256")
    finally:
        signer._process = os.getpid()


async def test_serial_and_slot_choose_a_token_too(token: Token) -> None:
    ring = KeyRing(token.uri.replace(f"token={token.label}", f"serial={token.serial}"))
    try:
        key = await ring.generate("issuer", "ec-p256")
        assert f"token={token.label};" in key.uri
    finally:
        await ring.close()
