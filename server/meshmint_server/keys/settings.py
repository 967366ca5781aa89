"""How keys are configured. Built into the service's configuration as ``keys:``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from meshmint_server.keys.pkcs11_module import check_threads
from meshmint_server.keys.ring import KeyRing
from meshmint_server.keys.secret import SecretSource
from meshmint_server.keys.uri import parse_token_uri

__all__ = ["KeySettings"]


class KeySettings(BaseModel):
    """Where signing keys are: a PKCS#11 token, a directory of encrypted files, or both.

    Attributes:
        pkcs11: RFC 7512 URI with module-path, the token's name and pin-source, such as
            ``pkcs11:token=meshmint?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/meshmint/pin``.
        threads: PKCS#11 calls at the same time; over 1 through p11-kit-proxy.so only.
        file_directory: Directory of encrypted PKCS#8 files, mode 0600.
        passphrase_source: ``file:/path`` or ``env:NAME``.
        queue_size: How many signatures may wait before callers get RESOURCE_EXHAUSTED.
        sign_timeout: Seconds that one signature may take, waiting included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    pkcs11: str | None = None
    threads: Annotated[int, Field(ge=1, le=64)] = 1
    file_directory: Path | None = None
    passphrase_source: str | None = None
    queue_size: Annotated[int, Field(ge=1, le=100_000)] = 1024
    sign_timeout: Annotated[float, Field(gt=0, le=60)] = 5.0

    @field_validator("passphrase_source")
    @classmethod
    def _passphrase_is_named_not_given(cls, value: str | None) -> str | None:
        if value is not None:
            SecretSource.parse(value, "passphrase")
        return value

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        if self.pkcs11 is not None:
            uri = parse_token_uri(self.pkcs11)
            check_threads(uri.module_path or "", self.threads)
        elif self.threads != 1:
            raise ValueError("'threads' is for a PKCS#11 token.")
        if (self.file_directory is None) != (self.passphrase_source is None):
            raise ValueError("'file_directory' and 'passphrase_source' go together.")
        if self.pkcs11 is None and self.file_directory is None:
            raise ValueError("No keys: set 'pkcs11' or 'file_directory'.")
        return self

    def build(self) -> KeyRing:
        """The ring of keys that these settings describe."""
        return KeyRing(
            self.pkcs11,
            self.file_directory,
            self.passphrase_source,
            threads=self.threads,
            queue_size=self.queue_size,
            sign_timeout=self.sign_timeout,
        )
