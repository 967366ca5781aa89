"""`meshmintd ca`: an issuer's key and CSR, the import of its certificate, a look at it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from meshmint_server.app import open_keyring, open_store
from meshmint_server.authority import IssuerDescription, create_csr, describe, import_chain
from meshmint_server.cli.key_words import key_words
from meshmint_server.cli.terminal import Failure, errors, out, readable_subject
from meshmint_server.config import Config
from meshmint_server.errors import InvalidRequest, KeyUnavailable
from meshmint_server.keys import KeyAlgorithmName
from meshmint_server.store import IssuerRow, Page, Store

__all__ = ["ca"]

ca = typer.Typer(help="Issuers: key and CSR, import, a look.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration.")]


@ca.command("csr")
def csr(
    *,
    config: ConfigFile,
    name: Annotated[str, typer.Option(help="Name of the issuer, such as issuer-2027.")],
    algorithm: Annotated[
        KeyAlgorithmName, typer.Option(help="Kind of key.")
    ] = KeyAlgorithmName.EC_P256,
    common_name: Annotated[
        str | None, typer.Option(help="CN of the subject; by default made of the name.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="The whole subject instead, as RFC 4514 has it.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Instead of standard output.")
    ] = None,
) -> None:
    """Makes a key where keys are configured, and prints a CSR for the root to sign.

    In a PKCS#11 token the key is generated inside, and cannot be extracted. Asked
    again for an issuer that still waits, it makes a CSR for the same key.
    """
    row, pem = asyncio.run(
        _create(Config.load(config), name, algorithm, common_name, _subject(subject))
    )
    if to is None:
        sys.stdout.write(pem)
    else:
        try:
            to.write_text(pem, encoding="ascii")
        except OSError as error:
            raise Failure(
                f"{to}: cannot be written: {error.strerror}; "
                "run it again to get a CSR for the same key"
            ) from error
    errors.print(
        f"Issuer {row.name} waits for its certificate. Its key: {row.key_uri}\n"
        f"Have the root sign the CSR, then: meshmintd ca import -c {config} CERTIFICATE… ROOT",
        markup=False,
    )


def _subject(text: str | None) -> x509.Name | None:
    if text is None:
        return None
    try:
        return x509.Name.from_rfc4514_string(text)
    except ValueError as error:
        raise Failure(f"--subject: {error}; write it as in 'CN=Mesh CA 2027,O=Example'") from error


async def _create(
    config: Config,
    name: str,
    algorithm: KeyAlgorithmName,
    common_name: str | None,
    subject: x509.Name | None,
) -> tuple[IssuerRow, str]:
    async with open_store(config) as store, open_keyring(config) as keyring:
        return await create_csr(
            store,
            keyring,
            name=name,
            algorithm=algorithm,
            trust_domain=config.trust_domain,
            now=datetime.now(UTC),
            common_name=common_name,
            subject=subject,
            crl_shards=config.publication.crl_shards,
            crl_url=config.publication.url,
        )


@ca.command("import")
def import_(
    *,
    config: ConfigFile,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="The certificate, those above it and the root: PEM or DER, in any order.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the issuer; by default found by its key.")
    ] = None,
    activate: Annotated[
        bool,
        typer.Option("--activate/--next", help="Whether it signs from now on, or is only shown."),
    ] = True,
) -> None:
    """Takes the signed certificate with its chain and root, and says why if it does not."""
    row = asyncio.run(_import(Config.load(config), _read(files), name, activate=activate))
    _show(describe(row))


def _read(files: Sequence[Path]) -> list[bytes]:
    material = []
    for file in files:
        try:
            material.append(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
        except OSError as error:
            raise Failure(f"{file}: cannot be read: {error.strerror}") from error
    return material


async def _import(
    config: Config, material: Sequence[bytes], name: str | None, *, activate: bool
) -> IssuerRow:
    async with open_store(config) as store, open_keyring(config) as keyring:
        try:
            return await import_chain(
                store,
                keyring,
                material,
                now=datetime.now(UTC),
                trust_domain=config.trust_domain,
                name=name,
                activate=activate,
            )
        except InvalidRequest as error:
            raise Failure(
                "the certificate was not imported",
                [violation.description for violation in error.violations] or [error.message],
            ) from error


@ca.command("show")
def show(
    *,
    config: ConfigFile,
    name: Annotated[str | None, typer.Argument(help="One issuer, and its key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Shows the issuers, or one of them and how its key is held."""
    loaded = Config.load(config)
    if name is None:
        found = [describe(row) for row in asyncio.run(_all(loaded))]
        key: tuple[str, ...] = ()
    else:
        row, key = asyncio.run(_one(loaded, name))
        found = [describe(row)]
    if as_json:
        shown = [asdict(issuer) for issuer in found]
        if key:
            shown[0]["key"] = ": ".join(key)
        out.print(json.dumps(shown if name is None else shown[0], default=_text), markup=False)
        return
    if not found:
        out.print("There is no issuer yet. Begin with: meshmintd ca csr")
    for number, issuer in enumerate(found):
        if number:
            out.print()
        _show(issuer, key)


async def _all(config: Config) -> list[IssuerRow]:
    async with open_store(config) as store:
        return [row async for row in _pages(store)]


async def _pages(store: Store) -> AsyncIterator[IssuerRow]:
    page: Page[IssuerRow] = await store.list_issuers(0, "")
    while True:
        for row in page.items:
            yield row
        if not page.next_page_token:
            return
        page = await store.list_issuers(0, page.next_page_token)


async def _one(config: Config, name: str) -> tuple[IssuerRow, tuple[str, ...]]:
    async with open_store(config) as store, open_keyring(config) as keyring:
        row = await store.get_issuer(name)
        if row is None:
            raise Failure(f"there is no issuer {name!r}; meshmintd ca show lists them")
        try:
            key = await keyring.open(row.key_uri, row.public_key)
            return row, key_words(key, await key.attributes())
        except KeyUnavailable as error:
            return row, (f"does not answer: {error.message}",)


def _show(issuer: IssuerDescription, key: tuple[str, ...] = ()) -> None:
    facts = [
        ("Issuer", f"{issuer.name} ({issuer.state})"),
        ("Subject", issuer.subject),
        ("SPIFFE ID", issuer.spiffe_id),
        ("Serial", issuer.serial_number),
        ("Valid", _span(issuer)),
        ("Signs until", _text(issuer.signs_until) if issuer.signs_until else None),
        ("SHA-256", issuer.fingerprint),
        ("Signed by", issuer.issuer),
        *(("Chain", subject) for subject in issuer.chain),
        *(("Root", subject) for subject in issuer.roots),
        ("Key", issuer.key_uri),
        *(("", words) for words in key or (issuer.algorithm,)),
    ]
    for label, value in facts:
        if value is not None:
            out.print(f"[dim]{label:<12}[/]", end="")
            out.print(readable_subject(value), markup=False)


def _span(issuer: IssuerDescription) -> str | None:
    if issuer.not_before is None or issuer.not_after is None:
        return None
    return f"{_text(issuer.not_before)} to {_text(issuer.not_after)}"


def _text(moment: object) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if isinstance(moment, datetime) else str(moment)
