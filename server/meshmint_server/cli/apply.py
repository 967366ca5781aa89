"""`meshmintd apply`: makes the roles be what the files say, and shows what changes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated

import typer

from meshmint_server.cli.role_diff import role_diff
from meshmint_server.cli.role_files import read_roles
from meshmint_server.cli.role_targets import RoleTarget, service_target, store_target
from meshmint_server.cli.terminal import Failure, errors, out
from meshmint_server.config import Config
from meshmint_server.issuance import PutRole, RoleChange
from meshmint_server.policy import Role

__all__ = ["apply", "apply_roles"]

_SIGNS = {
    RoleChange.CREATED: ("+", "good"),
    RoleChange.UPDATED: ("~", "careful"),
    RoleChange.UNCHANGED: ("=", "dim"),
}


def apply(
    *,
    files: Annotated[
        list[Path],
        typer.Option(
            "--file", "-f", metavar="FILE", help="YAML with roles; '-' for standard input."
        ),
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Writes to the store that this file names."),
    ] = None,
    server: Annotated[
        str | None, typer.Option(help="Asks the service at this address, such as host:8443.")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="With --server: roots of the service's certificate, PEM.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="With --server: an administrator's token.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Shows the changes and makes none.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a role.")] = False,
) -> None:
    """Creates and replaces roles, and shows the difference.

    Applying the same file twice changes nothing. A bad role refuses the lot.
    """
    roles = read_roles(files)
    puts = asyncio.run(
        apply_roles(_target(config, server, ca_file, token_file), roles, dry_run=dry_run)
    )
    if as_json:
        for put in puts:
            out.print(_json(put), markup=False)
        return
    for put in puts:
        _show(put)
    counts = Counter(put.change for put in puts)
    summary = ", ".join(f"{counts[change]} {change.value}" for change in RoleChange)
    out.print(f"{summary}{' (dry run: nothing was changed)' if dry_run else ''}")


def _target(
    config: Path | None, server: str | None, ca_file: Path | None, token_file: Path | None
) -> AbstractAsyncContextManager[RoleTarget]:
    if (config is None) == (server is None):
        raise Failure("say where the roles go: either -c FILE, or --server HOST:PORT")
    if config is not None:
        if ca_file or token_file:
            raise Failure("--ca-file and --token-file go with --server")
        return store_target(Config.load(config))
    assert server is not None  # noqa: S101 - one of the two is set
    if token_file is None:
        raise Failure("--server needs --token-file, with the token of an administrator")
    return service_target(server, ca_file=ca_file, token_file=token_file)


async def apply_roles(
    target: AbstractAsyncContextManager[RoleTarget], roles: Sequence[Role], *, dry_run: bool
) -> list[PutRole]:
    """Puts the roles. All are checked by the target before the first is changed."""
    async with target as there:
        checked = [await there.put(role, validate_only=True) for role in roles]
        if dry_run:
            return checked
        return [await there.put(role, validate_only=False) for role in roles]


def _show(put: PutRole) -> None:
    sign, style = _SIGNS[put.change]
    out.print(f"[{style}]{sign} role {put.role.name}: {put.change.value}[/]")
    if put.change is not RoleChange.UNCHANGED:
        for line in role_diff(put.before, put.role):
            out.print(f"    {line}", style="good" if line[0] == "+" else "bad", markup=False)
    for warning in put.warnings:
        errors.print("[careful]Warning:[/] ", end="")
        errors.print(f"role {put.role.name}: {warning}", markup=False)


def _json(put: PutRole) -> str:
    return json.dumps(
        {
            "role": put.role.name,
            "change": put.change.value,
            "diff": list(role_diff(put.before, put.role))
            if put.change is not RoleChange.UNCHANGED
            else [],
            "warnings": list(put.warnings),
        }
    )
