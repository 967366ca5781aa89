"""`meshmintd jwt-keys`: the keys that sign JWT-SVIDs, for operators.

A running service rotates them by itself; what is here is for a look, and for emergencies.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from meshmint_server.app import open_jwt_key_succession
from meshmint_server.authority import JwtKeys, JwtKeyStep, JwtKeySuccession
from meshmint_server.cli.terminal import errors, out
from meshmint_server.config import Config
from meshmint_server.errors import PreconditionFailed
from meshmint_server.store import JwtKeyRow, JwtKeyState

__all__ = ["jwt_keys", "next_key"]

ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration.")]

jwt_keys = typer.Typer(
    help="The keys that sign JWT-SVIDs: a look, and emergencies.", no_args_is_help=True
)


@jwt_keys.command()
def show(
    *,
    config: ConfigFile,
    as_json: Annotated[bool, typer.Option("--json", help="Prints JSON, one key a line.")] = False,
) -> None:
    """Lists the keys, the oldest first, and says what comes next."""
    rows, next_ = asyncio.run(_look(Config.load(config)))
    if as_json:
        for row in rows:
            out.print(json.dumps(_document(row)), markup=False)
        return
    for row in rows:
        _show(row)
    errors.print(_words(next_), markup=False)


@jwt_keys.command()
def rotate(
    *,
    config: ConfigFile,
    at_once: Annotated[
        bool,
        typer.Option(
            "--at-once",
            help="Does not wait until everybody can know the new key. For an emergency.",
        ),
    ] = False,
) -> None:
    """Makes and publishes the next key; where there is one, has it sign.

    The key that signed until then stays published until the last of its tokens has
    expired. A running service does all that by itself when its time has come.
    """
    row = asyncio.run(_rotate(Config.load(config), at_once))
    if row.state is JwtKeyState.ACTIVE:
        out.print(f"The key {row.key_id} signs from now on.", markup=False)
    else:
        out.print(
            f"The key {row.key_id} is published. Run this again, once everybody can know it, to "
            "have it sign before its time.",
            markup=False,
        )


@jwt_keys.command()
def remove(
    *,
    config: ConfigFile,
    key: Annotated[str, typer.Argument(help="The key, as 'show' names it.")],
    at_once: Annotated[
        bool,
        typer.Option("--at-once", help="Even though tokens of it live: they all stop to verify."),
    ] = False,
) -> None:
    """Stops publishing a key that does not sign: one that retired, or the next one.

    The next one never signed. Where its token is lost, nothing would follow until it is
    removed: the service then makes another. The key itself stays where it is.
    """
    asyncio.run(_remove(Config.load(config), key, at_once))
    out.print(
        f"The key {key} is not published any more. Verifiers know at their next refresh.",
        markup=False,
    )


async def _look(config: Config) -> tuple[tuple[JwtKeyRow, ...], JwtKeys]:
    async with open_jwt_key_succession(config) as succession:
        _, rows, next_ = await succession.look()
        return rows, next_


async def _rotate(config: Config, at_once: bool) -> JwtKeyRow:
    if not config.jwt_svid.enabled:
        raise PreconditionFailed(
            "This service issues no JWT-SVIDs: set 'jwt_svid.enabled' first.",
            reason="JWT_SVIDS_OFF",
        )
    async with open_jwt_key_succession(config) as succession:
        return await next_key(succession, at_once=at_once)


async def next_key(succession: JwtKeySuccession, *, at_once: bool) -> JwtKeyRow:
    """Makes and publishes the next key; where there is one, or at once, has it sign.

    Raises:
        MeshmintError: It cannot be made, does not sign, or not everybody can know it yet.
    """
    _, rows, _ = await succession.look()
    row = next((one for one in rows if one.state is JwtKeyState.NEXT), None)
    if row is None:
        row = await succession.prepare()
        if not at_once:
            return row
    revision, _, _ = await succession.look()
    return await succession.activate(row.key_id, at_revision=revision, at_once=at_once)


async def _remove(config: Config, key_id: str, at_once: bool) -> None:
    async with open_jwt_key_succession(config) as succession:
        revision, _, _ = await succession.look()
        await succession.remove(key_id, at_revision=revision, at_once=at_once)


def _show(row: JwtKeyRow) -> None:
    facts = (
        ("Key", f"{row.key_id} ({row.state.value})"),
        ("Published", _moment(row.published_at)),
        ("Signs from", _moment(row.activated_at)),
        ("Retired", _moment(row.retired_at)),
        ("Where", row.key_uri),
    )
    for label, value in facts:
        if value:
            out.print(f"[dim]{label:<12}[/]", end="")
            out.print(value, markup=False)


def _document(row: JwtKeyRow) -> dict[str, str | None]:
    return {
        "key_id": row.key_id,
        "state": row.state.value,
        "key_uri": row.key_uri,
        "created_at": _moment(row.created_at),
        "published_at": _moment(row.published_at) or None,
        "activated_at": _moment(row.activated_at) or None,
        "retired_at": _moment(row.retired_at) or None,
    }


def _words(next_: JwtKeys) -> str:
    when = "" if next_.due is None else f", due {_moment(next_.due)}"
    key = "" if next_.key is None else f" {next_.key.key_id}"
    if next_.step is JwtKeyStep.NONE:
        return "Nothing is to be done now" + (f"; the next step is{when[1:]}." if when else ".")
    return f"The service's next step: {next_.step.value}{key}{when}."


def _moment(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%dT%H:%M:%SZ}"
