"""Makes subjects' key pairs for Issue, off the event loop where that takes long."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshmint_server.errors import Overloaded
from meshmint_server.policy import KeyAlgorithm

__all__ = ["SubjectKeys", "private_key_pem"]

SubjectKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

# An RSA-4096 pair takes about half a second: more than this is not worth waiting for.
_MAX_RSA_WAITING = 16

_CURVES = {
    KeyAlgorithm.EC_P256: ec.SECP256R1(),
    KeyAlgorithm.EC_P384: ec.SECP384R1(),
    KeyAlgorithm.EC_P521: ec.SECP521R1(),
}


class SubjectKeys:
    """Makes key pairs. An RSA pair takes up to seconds, and has a thread of its own."""

    def __init__(self) -> None:
        self._rsa_thread = ThreadPoolExecutor(1, thread_name_prefix="rsa-keys")
        self._rsa_waiting = 0

    async def make(self, algorithm: KeyAlgorithm) -> SubjectKey:
        """A fresh key pair.

        Raises:
            Overloaded: Too many callers wait for RSA keys already.
        """
        if (curve := _CURVES.get(algorithm)) is not None:
            return ec.generate_private_key(curve)
        if algorithm is KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        if self._rsa_waiting >= _MAX_RSA_WAITING:
            raise Overloaded(
                "Too many RSA key pairs are being made. Retry, ask for an EC key, "
                "or make the key yourself and use Sign."
            )
        self._rsa_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._rsa_thread, rsa.generate_private_key, 65537, algorithm.value[1]
            )
        finally:
            self._rsa_waiting -= 1

    def close(self) -> None:
        """Gives up on pairs that nobody waits for any more."""
        self._rsa_thread.shutdown(wait=False, cancel_futures=True)


def private_key_pem(key: SubjectKey) -> str:
    """PKCS#8 (RFC 5958), PEM, not encrypted: only for the reply, never kept."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")
