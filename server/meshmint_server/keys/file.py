"""Signing keys in encrypted files, for development and for where there is no HSM.

PKCS#8, encrypted with a passphrase, mode 0600. The key is in this process's
memory while it is open: whoever can read that memory has it. A file that others
could read is refused, and an existing file is never written over.
"""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshmint_server.keys.algorithm import (
    KeyAlgorithmName,
    PublicKey,
    SignatureAlgorithm,
    key_algorithm_of,
    public_key_info,
)
from meshmint_server.keys.key import KeyAttributes, KeyFault
from meshmint_server.keys.secret import SecretSource
from meshmint_server.keys.signer import Signer, run_for_callers
from meshmint_server.keys.uri import FileKeyUri

__all__ = ["FileKey", "KeyDirectory"]

PrivateKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey

_MAX_BYTES: Final = 64 * 1024


class KeyDirectory:
    """The directory that holds key files. Blocking."""

    def __init__(self, path: Path, passphrase: SecretSource) -> None:
        self.path = path
        self._passphrase = passphrase

    def load(self, uri: FileKeyUri, expected: PublicKey | None) -> PrivateKey:
        """Read and decrypt a key.

        Raises:
            KeyFault: The file is missing, readable by others, not an encrypted key, or
                holds another key than is expected; or the passphrase is wrong.
        """
        path = self.path / uri.name
        pem = _read_private(path)
        if b"BEGIN ENCRYPTED PRIVATE KEY" not in pem:
            raise KeyFault(f"{path} is not an encrypted PKCS#8 key in PEM.", reason="KEY_UNFIT")
        passphrase = self._passphrase.read().encode()
        try:
            key = serialization.load_pem_private_key(pem, passphrase)
        except ValueError:
            # The two cannot be told apart for sure.
            raise KeyFault(
                f"{path} cannot be decrypted: the passphrase from {self._passphrase} is wrong, "
                "or the file is damaged.",
                reason="PASSPHRASE_REFUSED",
            ) from None
        if not isinstance(
            key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
        ):
            raise KeyFault(f"{path}: a signing key is RSA, EC or Ed25519.", reason="KEY_UNFIT")
        key_algorithm_of(key.public_key())
        if expected and public_key_info(expected) != public_key_info(key.public_key()):
            raise KeyFault(
                f"{path} is not the key that the issuer was made with.", reason="KEY_MISMATCH"
            )
        return key

    def generate(self, uri: FileKeyUri, kind: KeyAlgorithmName) -> PrivateKey:
        """Make a key and write it to its file, durably.

        Raises:
            KeyFault: There is such a file already, or it cannot be written.
        """
        key: PrivateKey
        if kind.rsa_bits is not None:
            key = rsa.generate_private_key(65537, kind.rsa_bits)
        elif kind.curve is not None:
            key = ec.generate_private_key(kind.curve)
        else:
            key = ed25519.Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(self._passphrase.read().encode()),
        )
        _write_private(self.path / uri.name, pem)
        return key

    def find_or_generate(self, uri: FileKeyUri, kind: KeyAlgorithmName) -> PrivateKey:
        """The key in its file; made if there is no such file.

        Raises:
            KeyFault: As for `load` and `generate`.
        """
        if (self.path / uri.name).exists():
            return self.load(uri, None)
        return self.generate(uri, kind)


class FileKey:
    """A signing key from a file, held in memory and used on its own thread."""

    def __init__(
        self, uri: FileKeyUri, key: PrivateKey, signer: Signer, path: Path, timeout: float
    ):
        self._uri = uri
        self._key = key
        self._signer = signer
        self._path = path
        self._timeout = timeout
        self._public_key = key.public_key()

    @property
    def uri(self) -> str:
        """``file:<name>``."""
        return str(self._uri)

    @property
    def public_key(self) -> PublicKey:
        """The public half."""
        return self._public_key

    @property
    def signer(self) -> Signer:
        """The file keys' thread."""
        return self._signer

    def sign_now(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Sign. See SigningKey."""
        try:
            return _sign(self._key, data, algorithm)
        except KeyFault as fault:
            told = fault.for_callers()
        raise told

    async def sign(self, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
        """Sign on the file keys' thread; see SigningKey."""
        return await run_for_callers(
            self._signer, partial(self.sign_now, data, algorithm), self._timeout
        )

    async def attributes(self) -> KeyAttributes:
        """A file can always be copied."""
        return KeyAttributes(
            storage="file",
            token=str(self._path),
            is_extractable=True,
            was_ever_extractable=True,
            is_sensitive=False,
            is_local=None,
            is_sign_only=False,
        )

    def __repr__(self) -> str:
        return f"FileKey({self.uri})"


def _sign(key: PrivateKey, data: bytes, algorithm: SignatureAlgorithm) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey) and algorithm.hash is None:
        return key.sign(data)
    if isinstance(key, ec.EllipticCurvePrivateKey) and algorithm.hash is not None:
        return key.sign(data, ec.ECDSA(algorithm.hash))
    if isinstance(key, rsa.RSAPrivateKey) and algorithm.hash and algorithm.rsa_padding:
        return key.sign(data, algorithm.rsa_padding, algorithm.hash)
    raise KeyFault(f"The key cannot sign with {algorithm}.", reason="KEY_REQUEST_REFUSED")


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFault(
            f"The key file {path} cannot be opened: {error.strerror}.", reason="KEY_NOT_FOUND"
        ) from None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise KeyFault(f"{path} is not a regular file.", reason="KEY_UNFIT")
        if info.st_mode & 0o077:
            raise KeyFault(
                f"The key file {path} has mode {stat.S_IMODE(info.st_mode):04o}, so others may "
                "reach it. Check who could have read it, then: chmod 600.",
                reason="KEY_UNFIT",
            )
        if info.st_uid not in (os.geteuid(), 0):
            raise KeyFault(
                f"The key file {path} belongs to another user (uid {info.st_uid}).",
                reason="KEY_UNFIT",
            )
        data = os.read(descriptor, _MAX_BYTES + 1)
    finally:
        os.close(descriptor)
    if len(data) > _MAX_BYTES:
        raise KeyFault(f"{path} is too large for a key.", reason="KEY_UNFIT")
    return data


def _write_private(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            # Half a key is no use to anybody, and would be in the way next time.
            path.unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except FileExistsError:
        raise KeyFault(
            f"There already is a key file {path}; it is not written over. Use another label.",
            reason="KEY_EXISTS",
        ) from None
    except OSError as error:
        raise KeyFault(f"The key file {path} cannot be written: {error.strerror}.") from None
