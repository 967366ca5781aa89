"""A signature by one of the service's own keys, trusted only once it verifies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from meshmint_server import telemetry
from meshmint_server.errors import KeyUnavailable
from meshmint_server.keys import PublicKey, SignatureAlgorithm, SigningKey

__all__ = ["sign_and_verify"]

log = structlog.get_logger(__name__)

# Looked up once: every certificate passes here.
_SIGNATURE_MADE = telemetry.SIGNATURE_SECONDS.labels("signed").observe
_SIGNATURE_FAILED = telemetry.SIGNATURE_SECONDS.labels("failed").observe
_SIGNATURE_WRONG = telemetry.SIGNATURE_SECONDS.labels("wrong").observe


async def sign_and_verify(
    key: SigningKey,
    public_key: PublicKey,
    data: bytes,
    algorithm: SignatureAlgorithm,
    on_trouble: Callable[[], None],
) -> bytes:
    """Has a key sign.

    Args:
        key: Signs.
        public_key: What its signatures must verify with.
        data: What to sign.
        algorithm: How.
        on_trouble: Told when the key does not do its work.

    Returns:
        The signature, DER for ECDSA.

    Raises:
        KeyUnavailable: The key does not sign, or signed wrongly.
        Overloaded: Too many signatures are waiting.
    """
    started = time.perf_counter()
    observe = _SIGNATURE_FAILED
    try:
        signature = await key.sign(data, algorithm)
        observe = _SIGNATURE_MADE
    except (KeyUnavailable, asyncio.CancelledError):
        # Whoever stopped waiting may have waited for a key that hangs.
        on_trouble()
        raise
    finally:
        observe(time.perf_counter() - started)
    if not signature or not algorithm.is_valid(public_key, signature, data):
        _SIGNATURE_WRONG(time.perf_counter() - started)
        log.error("the key made a wrong signature", key=key.uri)
        on_trouble()
        raise KeyUnavailable(
            "The signing key made a signature that does not verify. Nothing was handed out. "
            "Retry, and have an operator look at the token."
        )
    return signature
