"""`meshmint jwt-svid`: a token on stdout, for other programs, or in a file of its owner's."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from meshmint.client import Client
from meshmint.errors import ConfigurationError
from meshmint.results import JwtSvid

__all__ = ["add_jwt_svid", "check_jwt_svid", "print_jwt_svid", "request_jwt_svid"]


def add_jwt_svid(parser: argparse.ArgumentParser, duration: Callable[[str], timedelta]) -> None:
    """The options of the command."""
    group = parser.add_argument_group("token")
    group.add_argument(
        "--audience",
        action="append",
        default=[],
        required=True,
        metavar="NAME",
        help="who is to accept it; may be given more than once, and once is best",
    )
    group.add_argument(
        "--role", default="", metavar="NAME", help="default: the one role that fits you"
    )
    group.add_argument("--ttl", type=duration, metavar="TIME", help="lifetime, such as 5m")
    output = parser.add_argument_group("output", "Without any of these: the token on stdout.")
    output.add_argument(
        "--out", metavar="FILE", help="write the token there, for its owner alone (mode 0600)"
    )
    output.add_argument("--json", action="store_true", help="print JSON")


def request_jwt_svid(client: Client, arguments: argparse.Namespace) -> JwtSvid:
    """The call."""
    return client.issue_jwt_svid(arguments.audience, arguments.role, ttl=arguments.ttl)


def check_jwt_svid(arguments: argparse.Namespace) -> None:
    """Finds out before a token is issued whether it can be written.

    Raises:
        ConfigurationError: It cannot.
        OSError: Its directory cannot be made.
    """
    if arguments.out is None:
        return
    target = Path(arguments.out)
    if target.is_dir():
        raise ConfigurationError(f"{target} is a directory: name the file for the token")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"the directory {target.parent} cannot be written to")


def print_jwt_svid(svid: JwtSvid, arguments: argparse.Namespace) -> None:
    """Writes the token where it is wanted; what is for people goes to stderr.

    Raises:
        OSError: The file cannot be written.
    """
    for warning in svid.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    path = svid.write_file(arguments.out) if arguments.out else None
    if arguments.json:
        document: dict[str, Any] = {
            "spiffe_id": svid.spiffe_id,
            "audiences": svid.audiences,
            "issued_at": _rfc3339(svid.issued_at),
            "expires_at": _rfc3339(svid.expires_at),
            "role": svid.role,
            "jwt_id": svid.jwt_id,
            "warnings": svid.warnings,
        }
        document |= {"token": svid.token} if path is None else {"file": str(path)}
        print(json.dumps(document, indent=2, ensure_ascii=False))
    elif path is None:
        print(svid.token)


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
