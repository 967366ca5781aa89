"""`meshmintd ca show`: the issuers as they are kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from meshmint_server.app import open_keyring, open_store
from meshmint_server.authority import IssuerDescription, describe
from meshmint_server.cli.ca.arguments import ConfigFile
from meshmint_server.cli.key_words import key_words
from meshmint_server.cli.terminal import Failure, out, readable_subject
from meshmint_server.config import Config
from meshmint_server.errors import KeyUnavailable
from meshmint_server.store import IssuerRow, Page, Store

__all__ = ["show", "show_issuer"]


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
        show_issuer(issuer, key)


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
        if not row.has_key:
            return row, ("not made yet",)
        try:
            key = await keyring.open(row.key_uri, row.public_key)
            return row, key_words(key, await key.attributes())
        except KeyUnavailable as error:
            return row, (f"does not answer: {error.message}",)


def show_issuer(issuer: IssuerDescription, key: tuple[str, ...] = ()) -> None:
    """Prints an issuer, a line for each fact."""
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
