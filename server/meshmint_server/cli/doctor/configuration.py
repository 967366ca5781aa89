"""The configuration: whether it loads, and the files that it names."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.permissions import (
    check_directory,
    check_trusted_file,
    foreign_owner,
    mode_of,
    secret_file_faults,
)
from meshmint_server.config import Config, ConfigError
from meshmint_server.errors import KeyUnavailable
from meshmint_server.keys import SecretSource, parse_token_uri
from meshmint_server.store.url import PostgresUrl, SqliteUrl, parse_store_url

__all__ = ["check_configuration", "load_configuration"]

_CONFIGURATION = "configuration"
_KEYS = "keys"
_STORE = "store"
_UPSTREAM = "upstream"


def load_configuration(path: Path) -> tuple[Config | None, Finding]:
    """The configuration, if it can be used."""
    try:
        config = Config.load(path)
    except ConfigError as fault:
        return None, error(
            _CONFIGURATION,
            str(fault),
            "Correct it; docs/reference/config.md has every field. Nothing else could be checked.",
        )
    return config, ok(
        _CONFIGURATION, f"{path} can be used. It serves {config.trust_domain} on {config.listen}."
    )


def check_configuration(path: Path, config: Config | None) -> Iterator[Finding]:
    """Modes and owners of the configuration and of what it names, and whether secrets are there."""
    yield from check_trusted_file(_CONFIGURATION, path)
    if config is None:
        return
    yield from _pkcs11(config)
    yield from _key_files(config)
    yield from _upstream(config)
    yield from _store_files(config)


def _pkcs11(config: Config) -> Iterator[Finding]:
    if config.keys.pkcs11 is None:
        return
    uri = parse_token_uri(config.keys.pkcs11)
    if uri.module_path is not None:
        yield from check_trusted_file(_KEYS, Path(uri.module_path))
    yield from _secret(SecretSource.parse(uri.pin_source or "", "PIN"))


def _secret(source: SecretSource) -> Iterator[Finding]:
    try:
        source.read()
    except KeyUnavailable as fault:
        yield error(
            _KEYS,
            fault.message,
            f"Put the {source.purpose} there, for the service's user alone (mode 0600).",
        )
    else:
        yield ok(_KEYS, f"The {source.purpose} can be read from {source}.")
    if source.path is not None:
        yield from secret_file_faults(_KEYS, source.path, f"the {source.purpose}")


def _key_files(config: Config) -> Iterator[Finding]:
    directory = config.keys.file_directory
    if directory is None:
        return
    yield from _secret(SecretSource.parse(config.keys.passphrase_source or "", "passphrase"))
    if not directory.is_dir():
        yield error(
            _KEYS,
            f"The key directory {directory} is not there, or is no directory.",
            f"Make it for the service's user alone: mkdir -m 700 {directory}",
        )
        return
    yield from check_directory(_KEYS, directory)
    for file in sorted(directory.glob("*.pem")):
        mode = mode_of(file)
        if mode is not None and mode & 0o077:
            yield error(
                _KEYS,
                f"The key file {file} has mode {mode:04o}: others may reach it, so the service "
                "refuses it.",
                f"Check who could have read it, then: chmod 600 {file}",
            )


def _upstream(config: Config) -> Iterator[Finding]:
    """The program that has issuers signed: it runs as the service, and so can do what that can."""
    upstream = config.rotation.upstream
    if upstream is None:
        return
    program, *arguments = upstream.command
    found = shutil.which(program)
    if found is None:
        yield error(
            _UPSTREAM,
            f"The command {program} is not there, or cannot be executed by this user.",
            "Put it there, or correct 'rotation.upstream.command': no issuer can be signed.",
        )
    # Of an interpreter, its script.
    for file in map(Path, filter(None, (found, *arguments))):
        if file.is_absolute() and file.is_file():
            yield from check_trusted_file(_UPSTREAM, file)
    if found is not None:
        yield ok(_UPSTREAM, f"The command {found} is there. It was not run.")


def _store_files(config: Config) -> Iterator[Finding]:
    url = parse_store_url(config.store)
    if isinstance(url, PostgresUrl):
        if url.password_file is not None:
            yield from secret_file_faults(_STORE, url.password_file, "the database's password")
        return
    yield from _sqlite_file(url)


def _sqlite_file(url: SqliteUrl) -> Iterator[Finding]:
    owner = foreign_owner(url.path)
    if owner is not None:
        yield warning(
            _STORE,
            f"{url.path} belongs to another user (uid {owner}) than the one that asks: what works "
            "here may fail for the service.",
            "Run this command as the service's user.",
        )
    yield from secret_file_faults(_STORE, url.path, "every record")
