"""The keys of one process: opened by name, made by label.

A key is handed out only after it has signed something and the public key has
confirmed it: an issuer whose key does not fit is found at start-up, not when the
first certificate is refused by its reader.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from meshmint_server.keys.algorithm import (
    KeyAlgorithmName,
    PublicKey,
    default_algorithm,
    load_public_key,
)
from meshmint_server.keys.file import FileKey, KeyDirectory
from meshmint_server.keys.key import KeyFault
from meshmint_server.keys.pkcs11 import Pkcs11Key, Pkcs11Token
from meshmint_server.keys.pkcs11_module import Pkcs11Module
from meshmint_server.keys.secret import SecretSource
from meshmint_server.keys.signer import Signer, SignerHealth
from meshmint_server.keys.uri import (
    FileKeyUri,
    InvalidKeyUri,
    ObjectType,
    Pkcs11Uri,
    parse_key_uri,
    parse_token_uri,
)

__all__ = ["KeyRing", "OpenKey", "place_of"]

OpenKey: TypeAlias = FileKey | Pkcs11Key
"""A key that this process holds."""

# An RSA-4096 key takes tokens up to a minute to make.
_GENERATE_SECONDS: Final = 120.0
_OPEN_SECONDS: Final = 30.0
# A module may take longer to start and log in than a signature may, and yet not for ever.
_CONNECT_SECONDS: Final = 10.0
_KEY_FILE: Final = ".pem"
_TEST_MESSAGE: Final = b"meshmint key test, not a certificate: "


class KeyRing:
    """Opens and makes signing keys. One per process; usable from any event loop."""

    def __init__(
        self,
        pkcs11: str | None = None,
        file_directory: Path | None = None,
        passphrase_source: str | None = None,
        *,
        threads: int = 1,
        queue_size: int = 1024,
        sign_timeout: float = 5.0,
    ) -> None:
        """Take the configuration; nothing is loaded before the first key is.

        Args:
            pkcs11: Token URI, see ``parse_token_uri``; None without a token.
            file_directory: Where key files are; None without file keys.
            passphrase_source: ``file:/path`` or ``env:NAME``; needed for file keys.
            threads: PKCS#11 calls at the same time; over 1 through p11-kit-proxy.so only.
            queue_size: How many jobs may wait before Overloaded.
            sign_timeout: Seconds that a signature may take, queueing included.

        Raises:
            InvalidKeyUri: The configuration does not hold together.
        """
        self._timeout = sign_timeout
        self._module: Pkcs11Module | None = None
        self._token: Pkcs11Token | None = None
        self._directory: KeyDirectory | None = None
        self._file_signer: Signer | None = None
        if file_directory is not None:
            if passphrase_source is None:
                raise InvalidKeyUri("File keys need a passphrase source: file:/path or env:NAME.")
            source = SecretSource.parse(passphrase_source, "passphrase")
            self._directory = KeyDirectory(file_directory, source)
        if pkcs11 is not None:
            uri = parse_token_uri(pkcs11)
            if uri.module_path is None:
                raise InvalidKeyUri("The token URI needs 'module-path='.")
            SecretSource.parse(uri.pin_source or "", "PIN")
            self._module = Pkcs11Module.acquire(
                uri.module_path, threads=threads, queue_size=queue_size
            )
            self._token = Pkcs11Token(self._module, uri)
        if self._directory is not None:
            self._file_signer = Signer("keyfile", queue_size=queue_size)

    async def find_token(self) -> str | None:
        """Log in to the configured token, and tell which it is; None if none is configured.

        Raises:
            KeyUnavailable: It is not there, or does not let us in.
        """
        if self._token is None or self._module is None:
            return None
        return await self._module.signer.run(self._token.introduce, timeout=_OPEN_SECONDS)

    async def connect(self) -> None:
        """Log in to the token, if there is one: no signature has the time for a slow one to start.

        Raises:
            KeyUnavailable: It is not there, or does not let us in.
        """
        if self._token is not None and self._module is not None:
            await self._module.signer.run(self._token.introduce, timeout=_CONNECT_SECONDS)

    async def open(self, uri: str, public_key_spki_der: bytes | None = None) -> OpenKey:
        """Open a key and prove that it signs for its public key.

        Args:
            uri: As the store keeps it; a file key or a token's key.
            public_key_spki_der: The public key that it must have; None takes the key's word.

        Raises:
            InvalidKeyUri: The URI is malformed, or has a module or a PIN in it.
            KeyUnavailable: No such key, several, another key than expected, or no answer.
        """
        parsed = parse_key_uri(uri)
        expected = None if public_key_spki_der is None else load_public_key(public_key_spki_der)
        if isinstance(parsed, FileKeyUri):
            key: OpenKey = await self._open_file(parsed, expected)
        else:
            key = await self._open_token(parsed, expected)
        await self._prove(key)
        return key

    async def generate(self, label: str, algorithm: KeyAlgorithmName | str) -> OpenKey:
        """Make a key: in the token if one is configured, else in a file.

        Args:
            label: Name for people; the file's name, or CKA_LABEL. Up to 64 characters.
            algorithm: The kind of key.

        Raises:
            InvalidKeyUri: The label or the algorithm cannot be used.
            KeyUnavailable: The key could not be made, or does not sign.
        """
        return await self._make(parse_key_uri(self.place_of(label)), algorithm, may_exist=False)

    def place_of(self, label: str) -> str:
        """The URI by which a key of this label will be found where keys are made now.

        Raises:
            InvalidKeyUri: The label cannot be used.
        """
        return place_of(label, None if self._token is None else self._token.uri)

    async def adopt(self, uri: str, public_key_spki_der: bytes) -> OpenKey:
        """A key that was open before, in a process that is gone; not proven once more.

        One in a token is looked for when it signs, so that this needs no token to be there.

        Raises:
            InvalidKeyUri: The URI is malformed.
            KeyUnavailable: A key file cannot be opened.
        """
        parsed = parse_key_uri(uri)
        public_key = load_public_key(public_key_spki_der)
        if isinstance(parsed, FileKeyUri):
            return await self._open_file(parsed, public_key)
        token, module = self._tokens()
        return Pkcs11Key(token, module, parsed, public_key, self._timeout)

    async def find_or_generate(self, place: str, algorithm: KeyAlgorithmName | str) -> OpenKey:
        """The key at a place; made if there is none.

        So whoever wrote the place down first can be interrupted at any moment and ask
        again, and there is never a second key.

        Args:
            place: From `place_of`.
            algorithm: The kind of key to make. One that is found may be of another kind.

        Raises:
            InvalidKeyUri: The place or the algorithm cannot be used.
            KeyUnavailable: The key could not be found or made, or does not sign.
        """
        return await self._make(parse_key_uri(place), algorithm, may_exist=True)

    async def _make(
        self, place: Pkcs11Uri | FileKeyUri, algorithm: KeyAlgorithmName | str, *, may_exist: bool
    ) -> OpenKey:
        try:
            kind = KeyAlgorithmName(algorithm)
        except ValueError:
            raise InvalidKeyUri(
                f"The kind of key is one of {', '.join(KeyAlgorithmName)}."
            ) from None
        key: OpenKey
        if isinstance(place, FileKeyUri):
            directory, signer = self._files()
            make_file = directory.find_or_generate if may_exist else directory.generate
            private = await signer.run(partial(make_file, place, kind), timeout=_GENERATE_SECONDS)
            key = FileKey(place, private, signer, directory.path / place.name, self._timeout)
        else:
            token, module = self._tokens()
            make = token.find_or_generate if may_exist else token.generate
            made = await module.signer.run(
                partial(make, place.object or "", kind), timeout=_GENERATE_SECONDS
            )
            key = Pkcs11Key(token, module, made.uri, made.public_key, self._timeout)
        await self._prove(key)
        return key

    def health(self, limit: float = 10.0) -> SignerHealth:
        """How the signing threads are doing: the worst of them."""
        readings = [signer.health(limit) for signer in self._signers()]
        return SignerHealth(
            waiting=sum(reading.waiting for reading in readings),
            busy_seconds=max((reading.busy_seconds for reading in readings), default=0.0),
            is_stuck=any(reading.is_stuck for reading in readings),
        )

    def is_stuck(self, limit: float = 10.0) -> bool:
        """Whether a call hangs, so that this process should be replaced."""
        return any(signer.is_stuck(limit) for signer in self._signers())

    async def close(self) -> None:
        """End sessions and threads, after what waits has been signed."""
        module, self._module = self._module, None
        signer, self._file_signer = self._file_signer, None
        if module is not None:
            await asyncio.to_thread(module.release)
        if signer is not None:
            await asyncio.to_thread(signer.close)

    def _signers(self) -> list[Signer]:
        signers = [] if self._module is None else [self._module.signer]
        return signers if self._file_signer is None else [*signers, self._file_signer]

    def _files(self) -> tuple[KeyDirectory, Signer]:
        if self._directory is None or self._file_signer is None:
            raise KeyFault(
                "No keys are configured: neither a PKCS#11 token nor a key directory."
                if self._token is None
                else "This key is in a file, and no key directory is configured.",
                reason="KEYS_NOT_CONFIGURED",
            )
        return self._directory, self._file_signer

    async def _open_file(self, uri: FileKeyUri, expected: PublicKey | None) -> FileKey:
        directory, signer = self._files()
        private = await signer.run(partial(directory.load, uri, expected), timeout=_OPEN_SECONDS)
        return FileKey(uri, private, signer, directory.path / uri.name, self._timeout)

    def _tokens(self) -> tuple[Pkcs11Token, Pkcs11Module]:
        if self._token is None or self._module is None:
            raise KeyFault(
                "This key is in a PKCS#11 token, and no token is configured.",
                reason="KEYS_NOT_CONFIGURED",
            )
        return self._token, self._module

    async def _open_token(self, uri: Pkcs11Uri, expected: PublicKey | None) -> Pkcs11Key:
        token, module = self._tokens()
        found, public_key = await module.signer.run(
            partial(token.open_key, uri, expected), timeout=_OPEN_SECONDS
        )
        return Pkcs11Key(token, module, found, public_key, self._timeout)

    async def _prove(self, key: OpenKey) -> None:
        algorithm = default_algorithm(key.public_key)
        message = _TEST_MESSAGE + secrets.token_bytes(32)
        try:
            signature = await key.sign(message, algorithm)
        except KeyFault as fault:
            raise KeyFault(fault.detail, reason=fault.kind, retry_after=fault.retry_after) from None
        if not algorithm.is_valid(key.public_key, signature, message):
            raise KeyFault(
                f"The private key {key.uri} does not belong to the public key that it has here.",
                reason="KEY_MISMATCH",
            )


def place_of(label: str, token: Pkcs11Uri | None) -> str:
    """The URI of a key with this label, in the token or, without one, in a file.

    Raises:
        InvalidKeyUri: The label cannot be used.
    """
    if not 0 < len(label) <= 64 or not label.isprintable():
        raise InvalidKeyUri("A key's label has 1 to 64 printable characters.")
    if token is not None:
        return str(replace(token, object=label, type=ObjectType.PRIVATE))
    return str(FileKeyUri.parse(f"file:{label}{_KEY_FILE}"))
