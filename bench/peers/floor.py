"""The least that gRPC in Python costs here: handlers that do what no issuer can leave out.

``rpc`` answers at once. ``issue`` makes a key pair, has SoftHSM sign and verifies the signature;
``sign`` does the same, and checks a CSR in place of the key pair. Nobody is authenticated, and
nothing is decided, put together, recorded or logged. SoftHSM is in the process that talks to
strangers, which spares what Meshmint's signing process costs.

One process is a program: `python -m peers.floor ADDRESS TLS_FILE MODULE`, the PIN in FLOOR_PIN.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import pkcs11
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism
from pkcs11.util.ec import encode_ec_public_key, encode_named_curve_parameters
from support import softhsm
from support.server_ca import TestCa
from support.service import free_port

from peers.load import Call, frame, grpc_call
from peers.workload import CSR

__all__ = ["KINDS", "REPLY", "Floor"]

KINDS: Final = ("rpc", "issue", "sign")
# As long as Meshmint's, about.
REPLY: Final = bytes(2800)
_TO_BE_SIGNED: Final = bytes(600)
_LABEL: Final = "floor"
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


class Floor:
    """A process for each core, on one port, as Meshmint has them."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._address = f"127.0.0.1:{free_port()}"
        config = softhsm.write_config(directory / "softhsm")
        pin = secrets.token_hex(8)
        softhsm.init_token(config, _LABEL, secrets.token_hex(8), pin)
        command = [
            sys.executable, "-m", "peers.floor", self._address,
            str(TestCa(directory).server_file()), str(softhsm.require_module()),
        ]  # fmt: skip
        environment = {**os.environ, "SOFTHSM2_CONF": str(config), "FLOOR_PIN": pin}
        self._processes = [
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)
            for _ in range(os.cpu_count() or 1)
        ]

    @classmethod
    @contextmanager
    def running(cls, directory: Path) -> Iterator[Floor]:
        """Starts it and ends it with the block.

        Raises:
            RuntimeError: A process does not start; its error is above.
        """
        floor = cls(directory)
        try:
            for process in floor._processes:
                assert process.stdout is not None
                if not process.stdout.readline():
                    raise RuntimeError("a handler that does nothing else cannot be served")
            yield floor
        finally:
            for process in floor._processes:
                process.kill()
                process.wait()

    @property
    def pids(self) -> list[int]:
        """All processes."""
        return [process.pid for process in self._processes]

    def call(self, kind: str) -> Call:
        """The gRPC request; as Meshmint's callers, it has a token, at which nobody looks."""
        return grpc_call(self._address, f"floor/{kind}", "t" * 900, frame(CSR.encode()))


# --- one process -----------------------------------------------------------------------


def _signature(module: str) -> Callable[[], None]:
    """What has SoftHSM sign, and verifies."""
    token = pkcs11.lib(module).get_token(token_label=_LABEL)
    session = token.open(rw=True, user_pin=os.environ["FLOOR_PIN"])
    curve = encode_named_curve_parameters("secp256r1")
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True
    )
    public, private = parameters.generate_keypair()
    known = serialization.load_der_public_key(encode_ec_public_key(public))
    assert isinstance(known, ec.EllipticCurvePublicKey)
    verifier = known

    def sign() -> None:
        digest = hashlib.sha256(_TO_BE_SIGNED).digest()
        raw = private.sign(digest, mechanism=Mechanism.ECDSA, buffer_size=64)
        r, s = (int.from_bytes(half) for half in (raw[:32], raw[32:]))
        verifier.verify(encode_dss_signature(r, s), _TO_BE_SIGNED, _ECDSA)

    return sign


def _make_key() -> None:
    ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _check_csr() -> None:
    if not x509.load_pem_x509_csr(CSR.encode()).is_signature_valid:
        raise ValueError("the CSR is not signed by its key")


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, sign: Callable[[], None]) -> None:
        steps: dict[str, tuple[Callable[[], None], ...]] = {
            "rpc": (),
            "issue": (_make_key, sign),
            "sign": (_check_csr, sign),
        }
        self._methods = {f"/floor/{kind}": _handler(steps[kind]) for kind in KINDS}

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        return self._methods[details.method]


def _handler(steps: tuple[Callable[[], None], ...]) -> Any:
    async def handle(_request: bytes, _context: Any) -> bytes:
        for step in steps:
            step()
        return REPLY

    return grpc.unary_unary_rpc_method_handler(handle)


async def _serve(address: str, pem: bytes, module: str) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Handlers(_signature(module)),))
    server.add_secure_port(address, grpc.ssl_server_credentials([(pem, pem)]))
    await server.start()
    print("serving", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    at, tls_file, hsm = sys.argv[1:]
    uvloop.run(_serve(at, Path(tls_file).read_bytes(), hsm))
