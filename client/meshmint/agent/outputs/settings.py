"""What the configuration says about outputs; checked as text, before anything is written.

No setting holds a secret: passwords are named by the file or the environment variable
that has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from meshmint.agent.fields import AbsolutePath, Section

__all__ = [
    "DerOutput",
    "FileSettings",
    "JavaOutput",
    "Mode",
    "OutputSettings",
    "PasswordSource",
    "PemOutput",
    "Pkcs12Output",
    "SetOutput",
    "TemplateOutput",
]

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,239}")
_ACCOUNT = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,254}\$?")
_MOST_ID = 2**32 - 2


def _mode(value: object) -> int:
    # A bare 640 would be another number than people mean, and a bare 0640 is one in YAML 1.1
    # alone.
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value):
        raise ValueError('write permissions in quotes, as three octal digits, such as "0640"')
    mode = int(value, 8)
    if mode & 0o022:
        raise ValueError(
            "nobody but the owner needs to write: files are replaced and never edited; "
            'use "0640" or "0644"'
        )
    return mode


def _directory_mode(mode: int) -> int:
    if mode & 0o700 != 0o700:
        raise ValueError('the owner needs all rights in a directory: use "0700", "0750" or "0755"')
    return mode


def _private_mode(mode: int) -> int:
    if mode & 0o007:
        raise ValueError(
            'a private key is not for everyone: use "0600", or "0640" with the group that needs it'
        )
    return mode


def _account(value: object) -> str | int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ID:
        return value
    if isinstance(value, str):
        if re.fullmatch(r"[0-9]{1,10}", value) and int(value) <= _MOST_ID:
            return int(value)
        if _ACCOUNT.fullmatch(value):
            return value
    raise ValueError("write the name or the number of a user or group")


def _file_name(value: str) -> str:
    if not _FILE_NAME.fullmatch(value):
        raise ValueError(
            "write the name of a file without its directory: letters, digits and . _ @ + -, "
            "beginning with a letter or a digit"
        )
    return value


Mode = Annotated[int, BeforeValidator(_mode)]
"""Permissions as octal digits in quotes; nobody but the owner may write."""

PrivateMode = Annotated[Mode, AfterValidator(_private_mode)]
"""The same, and nothing for everyone."""

DirectoryMode = Annotated[Mode, AfterValidator(_directory_mode)]
"""The same, and all rights for the owner."""

Account = Annotated[str | int, BeforeValidator(_account)]
"""A user or a group, by name or number."""

FileName = Annotated[str, AfterValidator(_file_name)]


class FileSettings(Section):
    """One file of a set; just its name will do.

    Attributes:
        name: Its name in the directory.
        mode: Its permissions, if they are other than the output says.
        owner: The user it belongs to; likewise.
        group: The group it belongs to; likewise.
    """

    name: FileName
    mode: Mode | None = None
    owner: Account | None = None
    group: Account | None = None

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class _Files(Section):
    """Which files there are; those with private keys are for no one else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [file.name for _, file in self.present()]
        if not names:
            raise ValueError("name at least one file, or leave 'files' out for the usual ones")
        if len(set(names)) < len(names):
            raise ValueError("two files have the same name: give each its own")
        for kind, file in self.present():
            if kind in PRIVATE and file.mode is not None:
                _private_mode(file.mode)
        return self

    def present(self) -> Iterator[tuple[str, FileSettings]]:
        """Kind and settings of each file that is wanted."""
        for kind in type(self).model_fields:
            if (file := getattr(self, kind)) is not None:
                yield kind, file


PRIVATE = frozenset({"key", "combined", "keystore"})
"""The kinds of files that hold a private key."""


class CertificateFiles(_Files):
    """Files of one certificate.

    Attributes:
        certificate: The certificate alone.
        chain: Its issuers upwards, root left out.
        fullchain: The certificate, then its chain.
        key: The private key, PKCS#8, not encrypted.
        bundle: The roots of its trust domain.
    """

    certificate: FileSettings | None = None
    chain: FileSettings | None = None
    fullchain: FileSettings | None = None
    key: FileSettings | None = None
    bundle: FileSettings | None = None


class PemFiles(CertificateFiles):
    """Files of one certificate in PEM.

    Attributes:
        combined: The private key, the certificate and its chain in one file.
    """

    combined: FileSettings | None = None


class KeystoreFiles(_Files):
    """The file of a PKCS#12 output."""

    keystore: FileSettings


class JavaFiles(_Files):
    """The files of a Java output.

    Attributes:
        keystore: The private key, the certificate and its chain.
        truststore: The roots of its trust domain.
    """

    keystore: FileSettings | None = None
    truststore: FileSettings | None = None


class PasswordSource(Section):
    """Where a password is; read again at each use.

    Attributes:
        file: A file with nothing else in it; a line break at its end does not count.
        environment: The name of a variable of the agent's environment.
    """

    file: AbsolutePath | None = None
    environment: Annotated[str, Field(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\z")] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.environment is None):
            raise ValueError("name either a file or an environment variable with the password")
        return self


class SetOutput(Section):
    """A directory whose files change together.

    Attributes:
        directory: The directory, of this output alone; made if it is missing.
        directory_mode: Its permissions if it is made, and those of the versions in it.
        owner: The user that the files belong to; by default the agent's own.
        group: The group that the files, and the directory if it is made, belong to.
        mode: The permissions of files without a private key.
        key_mode: The permissions of files with one.
        replace: Replace files that are there already and are not the agent's.
        others_may_write: Accept a directory that others may write to.
    """

    directory: AbsolutePath
    directory_mode: DirectoryMode = 0o755
    owner: Account | None = None
    group: Account | None = None
    mode: Mode = 0o644
    key_mode: PrivateMode = 0o600
    replace: bool = False
    others_may_write: bool = False


class _WithBundles(SetOutput):
    """Attributes:
    federated_bundles: Trust domains whose roots are written beside, each into a file of its
        own, `bundle-<trust domain>` with the ending of the format; or `all` there are.
    """

    federated_bundles: Literal["all"] | tuple[str, ...] = ()


def _pem_files() -> PemFiles:
    return PemFiles(
        certificate=FileSettings(name="cert.pem"),
        chain=FileSettings(name="chain.pem"),
        fullchain=FileSettings(name="fullchain.pem"),
        key=FileSettings(name="key.pem"),
        bundle=FileSettings(name="bundle.pem"),
    )


class PemOutput(_WithBundles):
    """PEM files."""

    format: Literal["pem"]
    files: PemFiles = Field(default_factory=_pem_files)


def _der_files() -> CertificateFiles:
    return CertificateFiles(
        certificate=FileSettings(name="cert.der"), key=FileSettings(name="key.der")
    )


class DerOutput(_WithBundles):
    """DER files; where there are several certificates in one, they follow each other."""

    format: Literal["der"]
    files: CertificateFiles = Field(default_factory=_der_files)


Encryption = Literal["modern", "compatible"]
"""How a store is protected.

`modern`: AES-256-CBC, PBKDF2 with HMAC-SHA-256. `compatible`: triple DES and SHA-1, for
programs that cannot read that; the file's permissions are then what protects the key.
"""


class _Store(SetOutput):
    """Attributes:
    password: Where the password is.
    encryption: `modern` or `compatible`.
    alias: What the entry is called in the store; by default the certificate's name.
    """

    password: PasswordSource
    encryption: Encryption = "modern"
    alias: Annotated[str, Field(pattern=r"\A[A-Za-z0-9._-]{1,64}\z")] | None = None


class Pkcs12Output(_Store):
    """A PKCS#12 file (RFC 7292) with the private key, the certificate and its chain."""

    format: Literal["pkcs12"]
    files: KeystoreFiles = Field(
        default_factory=lambda: KeystoreFiles(keystore=FileSettings(name="keystore.p12"))
    )


class JavaOutput(_Store):
    """A keystore and a truststore that Java opens as type PKCS12, and as type JKS."""

    format: Literal["java"]
    files: JavaFiles = Field(
        default_factory=lambda: JavaFiles(
            keystore=FileSettings(name="keystore.p12"),
            truststore=FileSettings(name="truststore.p12"),
        )
    )


class TemplateOutput(Section):
    """A file made from a template.

    Attributes:
        source: The file of the template (Jinja2); it may include files of its own folder.
        template: The template itself, instead.
        destination: The file to write. A regular file there is replaced.
        mode: Its permissions.
        owner: The user it belongs to; by default the agent's own.
        group: The group it belongs to.
        directory_mode: The permissions of its directory, if that is made.
        replace: Replace a symbolic link at the destination; it is never followed.
        others_may_write: Accept a directory that others may write to.
    """

    format: Literal["template"] = "template"
    source: AbsolutePath | None = None
    template: str | None = None
    destination: AbsolutePath
    mode: Mode = 0o600
    owner: Account | None = None
    group: Account | None = None
    directory_mode: DirectoryMode = 0o755
    replace: bool = False
    others_may_write: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.source is None) == (self.template is None):
            raise ValueError("give either 'source', the file of the template, or 'template'")
        if not _FILE_NAME.fullmatch(self.destination.name.lstrip(".")):
            raise ValueError(
                "the destination's name needs letters, digits and . _ @ + - alone; "
                "write the whole path of the file"
            )
        return self


OutputSettings = Annotated[
    PemOutput | DerOutput | Pkcs12Output | JavaOutput | TemplateOutput,
    Field(discriminator="format"),
]
"""One output; `format` says which kind."""
