"""Sessions die in many ways. The next signature comes all the same, or a clear refusal does."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from meshmint_server.errors import KeyUnavailable
from meshmint_server.keys import KeyFault, KeyRing, SigningKey, default_algorithm
from meshmint_server.keys.pkcs11 import Pkcs11Token
from meshmint_server.keys.pkcs11_module import Pkcs11Module
from support.softhsm import SoftHsm, Token


@pytest.fixture
async def ring(token: Token) -> AsyncIterator[KeyRing]:
    ring = KeyRing(token.uri)
    yield ring
    await ring.close()


@pytest.fixture
async def key(ring: KeyRing) -> SigningKey:
    return await ring.generate("issuer", "ec-p256")


async def assert_signs(key: SigningKey) -> None:
    algorithm = default_algorithm(key.public_key)
    signature = await key.sign(b"message", algorithm)
    assert algorithm.is_valid(key.public_key, signature, b"message")


async def on_module_thread(
    ring: KeyRing, call: Callable[[Pkcs11Module, Pkcs11Token], object]
) -> None:
    module, token = ring._module, ring._token
    assert module is not None
    assert token is not None
    await module.signer.run(lambda: call(module, token) and None, timeout=5)


def close_work_session(_module: Pkcs11Module, token: Pkcs11Token) -> None:
    token._local.opened.session.close()


def log_out(module: Pkcs11Module, _token: Pkcs11Token) -> None:
    for login in module._logins.values():
        assert login.session is not None
        login.session.close()


def finalize(module: Pkcs11Module, _token: Pkcs11Token) -> None:
    module.lib.finalize()


def finalize_behind_python_pkcs11(module: Pkcs11Module, _token: Pkcs11Token) -> None:
    assert ctypes.CDLL(module.path).C_Finalize(None) == 0


def start_over(module: Pkcs11Module, _token: Pkcs11Token) -> None:
    module.lib.reinitialize()


def stale_handle(_module: Pkcs11Module, token: Pkcs11Token) -> None:
    """An operation left open in the session: the next C_SignInit gets CKR_OPERATION_ACTIVE."""
    opened = token._local.opened
    library = ctypes.CDLL(_module.path)
    assert (
        library.C_FindObjectsInit(ctypes.c_ulong(opened.session.handle), None, ctypes.c_ulong(0))
        == 0
    )


@pytest.mark.parametrize(
    "damage",
    [
        close_work_session,
        log_out,
        finalize,
        finalize_behind_python_pkcs11,
        start_over,
        stale_handle,
    ],
)
async def test_the_request_in_flight_is_signed_after(
    ring: KeyRing, key: SigningKey, damage: Callable[[Pkcs11Module, Pkcs11Token], object]
) -> None:
    await assert_signs(key)
    await on_module_thread(ring, damage)
    await assert_signs(key)
    await assert_signs(key)


@pytest.mark.parametrize("damage", [close_work_session, log_out, finalize])
async def test_a_key_is_made_after(
    ring: KeyRing, key: SigningKey, damage: Callable[[Pkcs11Module, Pkcs11Token], object]
) -> None:
    await on_module_thread(ring, damage)
    await assert_signs(await ring.generate("another", "ec-p256"))
    await assert_signs(key)


async def test_a_hanging_token_is_refused_in_time_and_reported(token: Token) -> None:
    ring = KeyRing(token.uri, sign_timeout=0.2)
    key = await ring.generate("issuer", "ec-p256")
    entered, go_on = threading.Event(), threading.Event()
    module = ring._module
    assert module is not None
    hang = asyncio.create_task(
        module.signer.run(lambda: entered.set() or go_on.wait(20), timeout=0.1)
    )
    await asyncio.to_thread(entered.wait, 5)
    try:
        with pytest.raises(KeyUnavailable):
            await assert_signs(key)
        with pytest.raises(KeyUnavailable):
            await hang
        assert ring.is_stuck(0.1)
        assert ring.health(0.1).is_stuck
    finally:
        go_on.set()
    await assert_signs(key)
    assert not ring.is_stuck(0.1)
    await ring.close()


async def test_many_deaths_do_not_use_up_the_tokens_sessions(
    ring: KeyRing, key: SigningKey
) -> None:
    for _ in range(30):
        await on_module_thread(ring, close_work_session)
        await assert_signs(key)
    assert ring._module is not None
    assert ring._module._lost_sessions <= 8


async def test_two_rings_on_one_token_do_not_log_each_other_out(
    token: Token, ring: KeyRing, key: SigningKey
) -> None:
    other = KeyRing(token.uri)
    same = await other.open(key.uri)
    await assert_signs(same)
    await other.close()
    await assert_signs(key)


async def test_a_token_that_went_away_is_reported_and_comes_back(
    softhsm: SoftHsm,
    ring: KeyRing,
    key: SigningKey,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokens = softhsm.directory / "tokens"
    await assert_signs(key)
    shutil.move(tokens, tmp_path / "away")
    await on_module_thread(ring, close_work_session)
    with caplog.at_level(logging.ERROR), pytest.raises(KeyUnavailable) as caught:
        await assert_signs(key)
    assert caught.value.message == "The signing key does not answer at present. Retry."
    assert "does not sign" in caplog.text
    shutil.move(tmp_path / "away", tokens)
    await asyncio.sleep(0.6)
    await assert_signs(key)


async def test_a_dead_token_is_left_alone_for_a_while(
    softhsm: SoftHsm, ring: KeyRing, key: SigningKey, tmp_path: Path
) -> None:
    tokens = softhsm.directory / "tokens"
    shutil.move(tokens, tmp_path / "away")
    try:
        await on_module_thread(ring, close_work_session)
        attempts = 0

        def count(module: Pkcs11Module, _token: Pkcs11Token) -> None:
            nonlocal attempts
            original = module.restart

            def counted(patience: float = 2.0) -> bool:
                nonlocal attempts
                attempts += 1
                return original(patience)

            module.restart = counted  # type: ignore[method-assign]

        await on_module_thread(ring, count)
        for _ in range(50):
            with pytest.raises(KeyFault) as caught:
                await assert_signs(key)
            assert caught.value.retry_after is not None
            assert 0 < caught.value.retry_after <= 30
        assert attempts == 1
    finally:
        shutil.move(tmp_path / "away", tokens)
