"""What the commands on issuers have in common: options, files in and out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from meshmint_server.cli.terminal import Failure

__all__ = ["ConfigFile", "OutFile", "read_files", "write_csr"]

ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration.")]
OutFile = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Instead of standard output.")
]


def read_files(files: Sequence[Path]) -> list[bytes]:
    """What is in the files; ``-`` is standard input.

    Raises:
        Failure: One cannot be read.
    """
    material = []
    for file in files:
        try:
            material.append(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
        except OSError as error:
            raise Failure(f"{file}: cannot be read: {error.strerror}") from error
    return material


def write_csr(pem: str, to: Path | None) -> None:
    """Writes a CSR to a file, or to standard output.

    Raises:
        Failure: The file cannot be written.
    """
    if to is None:
        sys.stdout.write(pem)
        return
    try:
        to.write_text(pem, encoding="ascii")
    except OSError as error:
        raise Failure(
            f"{to}: cannot be written: {error.strerror}; run it again to get a CSR for the same key"
        ) from error
