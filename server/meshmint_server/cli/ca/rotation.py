"""`meshmintd ca rotate` and `ca remove`: one issuer after the other."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from meshmint_server.app import build_upstream, open_succession
from meshmint_server.authority import (
    Rotation,
    RotationStep,
    Succession,
    UpstreamCommand,
    describe,
    describe_rotation,
)
from meshmint_server.cli.ca.arguments import ConfigFile, OutFile, write_csr
from meshmint_server.cli.ca.ceremony import import_files
from meshmint_server.cli.ca.view import show_issuer
from meshmint_server.cli.terminal import errors, out
from meshmint_server.config import Config
from meshmint_server.store import IssuerRow

__all__ = ["remove", "rotate"]


def rotate(
    *,
    config: ConfigFile,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE… | NAME]",
            help="The next issuer's certificate, those above it and the root; with --activate "
            "the name of the issuer: the next one, or a retired one that signs again.",
        ),
    ] = None,
    activate: Annotated[
        bool, typer.Option("--activate", help="Has the next issuer sign from now on.")
    ] = False,
    at_once: Annotated[
        bool,
        typer.Option(
            "--at-once",
            help="With --activate: does not wait until everybody can know its root, and takes "
            "one that ends before the active one. For an emergency.",
        ),
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Says how far it is, and changes nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --status: as JSON.")] = False,
    name: Annotated[
        str | None,
        typer.Option(
            help="Of the issuer that is made, such as issuer-2027, or that the certificate is "
            "for; by default of the date, or found by its key. One that waits already, or has "
            "not signed yet, gets a CSR for its key.",
            show_default=False,
        ),
    ] = None,
    to: OutFile = None,
) -> None:
    """Does the next step from the active issuer to its successor, and says what comes then.

    Without a next issuer it makes one: a key where keys are configured, and a CSR for
    the root to sign; with an upstream the certificate comes from there. Given the
    certificate, it publishes the issuer as the next one. A running service activates
    that when its time has come.
    """
    given = arguments or []
    if at_once and not activate:
        raise typer.BadParameter("goes with --activate", param_hint="--at-once")
    if as_json and not status:
        raise typer.BadParameter("goes with --status", param_hint="--json")
    if activate + status + bool(given and not activate) > 1 or (activate and len(given) > 1):
        raise typer.BadParameter("files, --activate [NAME], --status: one of these")
    if name is not None and (activate or status):
        raise typer.BadParameter("goes with a new issuer, or its certificate", param_hint="--name")
    loaded = Config.load(config)
    if status:
        _show_status(asyncio.run(_rotation(loaded)), as_json=as_json)
        return
    if activate:
        show_issuer(describe(asyncio.run(_activate(loaded, next(iter(given), None), at_once))))
    elif given:
        show_issuer(describe(import_files(loaded, [Path(file) for file in given], name)))
    else:
        asyncio.run(_next_step(loaded, name, to))
    errors.print(describe_rotation(asyncio.run(_rotation(loaded))), markup=False)


async def _rotation(config: Config) -> Rotation:
    async with open_succession(config) as succession:
        return await succession.rotation()


async def _activate(config: Config, name: str | None, at_once: bool) -> IssuerRow:
    async with open_succession(config) as succession:
        return await succession.activate(name, at_once=at_once)


async def _next_step(config: Config, name: str | None, to: Path | None) -> None:
    async with open_succession(config) as succession:
        rotation = await succession.rotation()
        if name is None and rotation.step is RotationStep.ACTIVATE:
            # Of several that are next, the one that the service would take.
            show_issuer(describe(await succession.activate(rotation.next)))
        elif name is not None or rotation.step is not RotationStep.WAIT:
            # Whoever asks for it gets a successor, whether it is due or not.
            upstream = build_upstream(config)
            if upstream is None:
                _, pem = await succession.prepare(name)
                write_csr(pem, to)
            else:
                show_issuer(describe(await _fetch(succession, name, upstream)))


async def _fetch(succession: Succession, name: str | None, upstream: UpstreamCommand) -> IssuerRow:
    row, pem = await succession.prepare(name)
    return await succession.import_([await upstream.sign(pem)], name=row.name)


def _show_status(rotation: Rotation, *, as_json: bool) -> None:
    if not as_json:
        out.print(describe_rotation(rotation), markup=False)
        return
    facts = {**asdict(rotation), "description": describe_rotation(rotation)}
    out.print(json.dumps(facts, default=_text), markup=False)


def _text(moment: object) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}" if isinstance(moment, datetime) else str(moment)


def remove(
    *,
    config: ConfigFile,
    name: Annotated[str, typer.Argument(help="Name of the issuer.")],
    at_once: Annotated[
        bool,
        typer.Option(
            "--at-once",
            help="Even though certificates live that chain to it: they all stop to verify.",
        ),
    ] = False,
) -> None:
    """Stops publishing an issuer: one that retired, or one that was never used.

    A running service does so by itself once nothing live chains to the issuer. Its key
    stays where it is.
    """
    row = asyncio.run(_remove(Config.load(config), name, at_once))
    show_issuer(describe(row))


async def _remove(config: Config, name: str, at_once: bool) -> IssuerRow:
    async with open_succession(config) as succession:
        return await succession.remove(name, at_once=at_once)
