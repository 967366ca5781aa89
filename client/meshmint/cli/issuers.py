"""Issuers and their succession: what an operator sees and does from anywhere.

What is for programs goes to stdout; what comes next, in words, goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from meshmint.admin import AdminClient
from meshmint.cli.view import write_columns
from meshmint.issuer_operations import Issuer, Rotation

__all__ = ["HEADINGS", "add_rotation", "check_rotation", "rotate", "show"]

HEADINGS = ("ISSUER", "STATE", "VALID TO", "SERIAL", "SUBJECT")


def add_rotation(parser: argparse.ArgumentParser) -> None:
    """Adds what `meshmint rotate` can be told."""
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="the next issuer's certificate, those above it and the root, PEM or DER, in any "
        "order; - for stdin",
    )
    parser.add_argument(
        "--name",
        default="",
        metavar="NAME",
        help="of the issuer that is made, or that the certificate is for (default: of the date, "
        "or found by its key)",
    )
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--status", action="store_true", help="say how far it is, change nothing")
    steps.add_argument(
        "--activate", metavar="NAME", help="have this issuer sign: the next, or a retired one"
    )
    steps.add_argument("--remove", metavar="NAME", help="stop publishing this issuer")
    parser.add_argument(
        "--at-once",
        action="store_true",
        help="with --activate or --remove, in an emergency: although its root may not be known "
        "everywhere, or certificates live that chain to it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def check_rotation(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the options together, if anything."""
    if (arguments.status or arguments.activate or arguments.remove) and (
        arguments.files or arguments.name
    ):
        return "files and --name go with a new issuer, not with --status, --activate, --remove"
    if arguments.at_once and not (arguments.activate or arguments.remove):
        return "--at-once goes with --activate or --remove"
    return None


def show(client: AdminClient, arguments: argparse.Namespace) -> None:
    """Every issuer and what comes next, or one issuer with its certificate."""
    if arguments.name:
        issuer = client.get_issuer(arguments.name)
        if arguments.json:
            print(_json(_document(issuer)))
        else:
            write_columns(HEADINGS, [_columns(issuer)], sys.stderr)
            sys.stdout.write(issuer.certificate_pem)
        return
    found = _all(client)
    if arguments.json:
        for issuer in found:
            print(_json(_document(issuer)))
        return
    write_columns(HEADINGS, map(_columns, found), sys.stdout)
    _say(client.get_rotation())


def rotate(client: AdminClient, arguments: argparse.Namespace, certificates: str) -> None:
    """The next step of the succession, and what comes then.

    Args:
        client: Of an administrator.
        arguments: What was asked for.
        certificates: What is in the files, PEM; empty without any.
    """
    if arguments.status:
        rotation = client.get_rotation()
        print(_json(_document(rotation)) if arguments.json else _plain(rotation.description))
        return
    if arguments.activate:
        _print(client.activate_issuer(arguments.activate, at_once=arguments.at_once), arguments)
    elif arguments.remove:
        _print(client.remove_issuer(arguments.remove, at_once=arguments.at_once), arguments)
    elif certificates:
        _print(client.import_issuer(certificates, name=arguments.name), arguments)
    else:
        prepared = client.prepare_issuer(arguments.name)
        if arguments.json:
            print(_json({"issuer": prepared.issuer.name, "csr": prepared.csr_pem}))
        else:
            sys.stdout.write(prepared.csr_pem)
    _say(client.get_rotation())


def _all(client: AdminClient) -> Iterator[Issuer]:
    token = ""
    while True:
        page = client.list_issuers(page_token=token)
        yield from page.items
        token = page.next_page_token
        if not token:
            return


def _print(issuer: Issuer, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(_json(_document(issuer)))
    else:
        write_columns(HEADINGS, [_columns(issuer)], sys.stdout)


def _say(rotation: Rotation) -> None:
    # Names and failures in it were written by others: no control character for a terminal.
    print(_plain(rotation.description), file=sys.stderr)


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _columns(issuer: Issuer) -> Sequence[str]:
    end = "-" if issuer.not_after is None else f"{issuer.not_after:%Y-%m-%d %H:%M:%S}"
    return issuer.name, issuer.state, end, issuer.serial_number or "-", issuer.subject or "-"


def _document(found: Issuer | Rotation) -> dict[str, Any]:
    values = asdict(found)
    return {
        name.removesuffix("_pem"): (
            value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        )
        for name, value in values.items()
    }


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
