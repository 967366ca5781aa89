"""`meshmintd ca csr` and `ca import`: how an issuer comes to be."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509

from meshmint_server.app import open_succession
from meshmint_server.authority import describe
from meshmint_server.cli.ca.arguments import ConfigFile, OutFile, read_files, write_csr
from meshmint_server.cli.ca.view import show_issuer
from meshmint_server.cli.terminal import Failure, errors
from meshmint_server.config import Config
from meshmint_server.errors import InvalidRequest
from meshmint_server.keys import KeyAlgorithmName
from meshmint_server.store import IssuerRow, IssuerState

__all__ = ["csr", "import_", "import_files"]

AtOnce = Annotated[
    bool,
    typer.Option(
        "--at-once", help="Does not wait until everybody can know its root: for an emergency."
    ),
]


def csr(
    *,
    config: ConfigFile,
    name: Annotated[str, typer.Option(help="Name of the issuer, such as issuer-2027.")],
    algorithm: Annotated[
        KeyAlgorithmName | None, typer.Option(help="Kind of key; by default as configured.")
    ] = None,
    common_name: Annotated[
        str | None, typer.Option(help="CN of the subject; by default made of the name.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="The whole subject instead, as RFC 4514 has it.")
    ] = None,
    to: OutFile = None,
) -> None:
    """Makes a key where keys are configured, and prints a CSR for the root to sign.

    In a PKCS#11 token the key is generated inside, and cannot be extracted. Asked
    again for an issuer that still waits, it makes a CSR for the same key.
    """
    row, pem = asyncio.run(
        _create(Config.load(config), name, algorithm, common_name, _subject(subject))
    )
    write_csr(pem, to)
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
    algorithm: KeyAlgorithmName | None,
    common_name: str | None,
    subject: x509.Name | None,
) -> tuple[IssuerRow, str]:
    async with open_succession(config) as succession:
        return await succession.prepare(
            name, algorithm=algorithm, common_name=common_name, subject=subject
        )


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
        bool | None,
        typer.Option(
            "--activate/--next",
            help="Whether it signs from now on, or is only published; by default it signs if "
            "there is no active issuer.",
            show_default=False,
        ),
    ] = None,
    at_once: AtOnce = False,
) -> None:
    """Takes the signed certificate with its chain and root, and says why if it does not."""
    row = import_files(Config.load(config), files, name, activate=activate, at_once=at_once)
    show_issuer(describe(row))
    if row.state is IssuerState.NEXT:
        errors.print(
            f"It is published, and does not sign yet. What comes next: meshmintd ca rotate "
            f"-c {config} --status",
            markup=False,
        )


def import_files(
    config: Config,
    files: Sequence[Path],
    name: str | None = None,
    *,
    activate: bool | None = None,
    at_once: bool = False,
) -> IssuerRow:
    """Imports what is in the files.

    Raises:
        Failure: It was refused, with every reason.
    """
    material = read_files(files)

    async def run() -> IssuerRow:
        async with open_succession(config) as succession:
            return await succession.import_(material, name=name, activate=activate, at_once=at_once)

    try:
        return asyncio.run(run())
    except InvalidRequest as error:
        raise Failure(
            "the certificate was not imported",
            [violation.description for violation in error.violations] or [error.message],
        ) from error
