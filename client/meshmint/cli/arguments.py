"""The command line: what can be said, and what the environment says for it.

A token has no option: command lines are seen by every process of the machine.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from meshmint.cli.agent import add_agent, check_agent
from meshmint.cli.errors import USAGE
from meshmint.cli.issuers import add_rotation, check_rotation
from meshmint.cli.jwt_svid import add_jwt_svid
from meshmint.cli.records import add_record_filter, record_filter
from meshmint.keys import KEY_ALGORITHMS
from meshmint.revocation import REVOCATION_REASONS
from meshmint.roles import duration_from_text

__all__ = ["parse_arguments"]

_ENVIRONMENT = """\
environment:
  MESHMINT_SERVER       the server, as --server
  MESHMINT_CA_FILE      roots of the server's certificate, as --ca-file
  MESHMINT_TOKEN_FILE   file with the token, as --token-file
  MESHMINT_TOKEN        the token itself, if there is no file
  NO_COLOR              if set, no colours

exit status:
  0 done   2 wrong usage   3 refused   4 not available, try again later
  5 a certificate does not hold   1 anything else
"""

# It has its own settings, and takes none of these variables but the last.
_AGENT_ENVIRONMENT = """\
environment:
  MESHMINT_AGENT_CONFIG its configuration, as --config
  NO_COLOR              if set, no colours

exit status:
  0 done, or ended by SIGTERM   2 the configuration cannot be used, or another agent works here
  --once: 1 something not written   3 refused   4 not available   5 a certificate does not hold
  --check: 1 there is a fault       status: 1 no agent runs
"""

_EXAMPLES = {
    "": """\
examples:
  meshmint issue --out /run/svid        an X509-SVID, its key made here
  meshmint sign request.csr > cert.pem  a certificate for your own key
  meshmint chain --out /etc/mesh        the issuer's chain and the roots
  meshmint jwt-svid --audience https://api.example.org
  meshmint revoke --certificate cert.pem --key key.pem --reason key-compromise
  meshmint inspect /run/svid/cert.pem   what is in a certificate
  meshmint records --role web           what was issued (for operators)
  meshmint issuers                      who signs, and what comes next (for operators)
  meshmint agent -c agent.yaml          gets certificates, renews them, hands them to programs
""",
    "agent": """\
examples:
  meshmint agent -c agent.yaml --check
  meshmint agent -c agent.yaml --once
  meshmint agent -c agent.yaml
  meshmint agent status -c agent.yaml

It runs until SIGTERM; SIGHUP has it read its configuration again. docs/guide/agent.md in
the source has the whole of it. It needs pip install 'meshmint[agent]'.
""",
    "issue": """\
examples:
  meshmint issue --out /run/svid
  meshmint issue --role web --dns web.example.org --ttl 12h --out /etc/web/tls
  meshmint issue --uri spiffe://example.org/ns/shop/sa/cart --json | jq -r .certificate

Without names, a role for X509-SVIDs fills in your own SPIFFE ID. The private key
is made here and stays here, unless --server-key is given.
""",
    "sign": """\
examples:
  meshmint sign request.csr --role web > cert.pem
  openssl req -new -key key.pem -subj / | meshmint sign - --out /etc/web/tls
""",
    "chain": """\
examples:
  meshmint chain --only bundle > roots.pem
  meshmint chain --out /etc/mesh
""",
    "jwt-svid": """\
examples:
  meshmint jwt-svid --audience https://api.example.org
  meshmint jwt-svid --audience spiffe://example.org/ns/shop/sa/db --ttl 2m --out /run/svid/jwt

Whoever has the token is taken for you by its audiences until it expires: keep it out of
logs, and give each audience a token of its own.
""",
    "revoke": """\
examples:
  meshmint revoke --serial 3f:0a:c1 --reason superseded
  meshmint revoke --certificate cert.pem --key key.pem --reason key-compromise

Without --key your token must be that of an administrator, or of the caller that the
certificate was issued to. With it nobody asks who you are: a signature proves that the
key is at hand, and the key stays here. What is revoked stays revoked.
""",
    "inspect": """\
examples:
  meshmint inspect /run/svid/fullchain.pem --bundle /run/svid/bundle.pem
  openssl s_client -connect web:443 </dev/null | meshmint inspect -
""",
    "records": """\
examples:
  meshmint records --name web.example.org
  meshmint records --caller system:serviceaccount:shop:cart --expires-from 2030-01-31T12:00:00Z
  meshmint records --role web --limit 100000 --json | jq -r .serial_number
  meshmint records 3f:0a:c1 > cert.pem

For administrators of the server. The newest come first. With a serial number: that
record, and its certificate as PEM on stdout.
""",
    "issuers": """\
examples:
  meshmint issuers
  meshmint issuers issuer-2027 > issuer.pem

For administrators of the server. What comes next is said on stderr. With a name: that
issuer, and its certificate as PEM on stdout.
""",
    "rotate": """\
examples:
  meshmint rotate --status
  meshmint rotate > issuer.csr          a key where the server has them, and its CSR
  meshmint rotate issuer.pem root.pem   brings what the CA above has signed
  meshmint rotate --activate issuer-2028
  meshmint rotate --remove issuer-2027 --at-once

For administrators of the server. Without any option it makes an issuer that waits for
its certificate; asked again, it prints a CSR for the same key. The server activates the
next issuer by itself when it is due, and removes a retired one when nothing live chains to it.
""",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as every other error of this command does."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"error: {message}\nhint: {self.prog} -h shows what there is\n")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses the command line; exits with status 2 if it is wrong."""
    parser = _Parser(
        prog="meshmint",
        description="Gets X.509 certificates with SPIFFE identities from Meshmint.",
        epilog=_EXAMPLES[""] + "\n" + _ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"meshmint {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=f"{_EXAMPLES[name]}\n{_AGENT_ENVIRONMENT if name == 'agent' else _ENVIRONMENT}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    issue = command("issue", "get a certificate for a new key")
    _add_connection(issue)
    _add_certificate(issue)
    issue.add_argument(
        "--key-algorithm",
        choices=KEY_ALGORITHMS,
        metavar="NAME",
        help=f"one of {', '.join(KEY_ALGORITHMS)} (default: ec-p256, or the role's choice "
        "with --server-key)",
    )
    issue.add_argument(
        "--server-key",
        action="store_true",
        help="let the server make the key; it then crosses the network",
    )
    _add_output(issue, "cert.pem, chain.pem, fullchain.pem, bundle.pem and key.pem")

    sign = command("sign", "get a certificate for the key of a CSR")
    sign.add_argument("csr", metavar="CSRFILE", help="the CSR, PEM or DER; - for stdin")
    _add_connection(sign)
    _add_certificate(sign)
    _add_output(sign, "cert.pem, chain.pem, fullchain.pem and bundle.pem")

    chain = command("chain", "get an issuer's chain and the trust bundle")
    chain.add_argument("--issuer", default="", metavar="NAME", help="default: the active one")
    chain.add_argument(
        "--only",
        choices=("chain", "bundle"),
        help="print only the chain, or only the roots (default: both)",
    )
    _add_connection(chain)
    _add_output(chain, "chain.pem and bundle.pem")

    jwt_svid = command("jwt-svid", "get a JWT-SVID, a token that says who you are")
    _add_connection(jwt_svid)
    add_jwt_svid(jwt_svid, _duration)

    revoke = command("revoke", "revoke a certificate, for good")
    target = revoke.add_mutually_exclusive_group(required=True)
    target.add_argument("--serial", metavar="NUMBER", help="its serial number, hexadecimal")
    target.add_argument(
        "--certificate",
        metavar="FILE",
        help="the certificate itself, PEM or DER, the first in the file; - for stdin",
    )
    revoke.add_argument(
        "--key", metavar="FILE", help="its private key, to prove that it is at hand; it stays here"
    )
    revoke.add_argument(
        "--reason",
        choices=REVOCATION_REASONS,
        default="unspecified",
        metavar="NAME",
        help=f"one of {', '.join(REVOCATION_REASONS)} (default: unspecified)",
    )
    revoke.add_argument("--json", action="store_true", help="print JSON")
    _add_connection(revoke)

    inspect = command("inspect", "show what is in a certificate")
    inspect.add_argument("file", metavar="FILE", help="certificates, PEM or DER; - for stdin")
    inspect.add_argument(
        "--bundle", metavar="FILE", help="roots; check that the certificate chains to one of them"
    )
    inspect.add_argument("--chain", metavar="FILE", help="certificates in between, in any order")
    inspect.add_argument("--json", action="store_true", help="print JSON")

    records = command("records", "list what was issued, or show one record")
    records.add_argument("serial", nargs="?", metavar="SERIAL", help="serial number, hexadecimal")
    _add_connection(records)
    add_record_filter(records, _time)
    records.add_argument(
        "--limit", type=_count, default=50, metavar="NUMBER", help="at most so many (default: 50)"
    )
    records.add_argument("--json", action="store_true", help="print JSON, one record a line")

    issuers = command("issuers", "list the issuers, or show one")
    issuers.add_argument("name", nargs="?", metavar="NAME", help="one issuer, and its certificate")
    _add_connection(issuers)
    issuers.add_argument("--json", action="store_true", help="print JSON, one issuer a line")

    rotate = command("rotate", "do the next step from the active issuer to its successor")
    add_rotation(rotate)
    _add_connection(rotate)

    agent = command("agent", "get certificates, renew them, and hand them to programs")
    add_agent(agent)

    parsed = parser.parse_args(arguments)
    if parsed.command not in ("inspect", "agent") and not parsed.server:
        parser.error("no server is given: use --server HOST:PORT or set MESHMINT_SERVER")
    if parsed.command == "chain" and parsed.only and (parsed.out or parsed.json):
        parser.error("--only is for printing PEM, without --out and --json")
    if parsed.command == "records" and parsed.serial and record_filter(parsed):
        parser.error("a serial number finds one record: give no filter with it")
    if parsed.command == "revoke" and parsed.key and not parsed.certificate:
        parser.error("--key proves the possession of a --certificate")
    if parsed.command == "rotate" and (fault := check_rotation(parsed)):
        parser.error(fault)
    if parsed.command == "agent" and (fault := check_agent(parsed)):
        parser.error(fault)
    return parsed


def _add_connection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--server",
        default=os.environ.get("MESHMINT_SERVER"),
        metavar="HOST:PORT",
        help="the server; unix:/path for a socket",
    )
    group.add_argument(
        "--ca-file",
        default=os.environ.get("MESHMINT_CA_FILE") or None,
        metavar="FILE",
        help="roots of the server's certificate (default: the system's)",
    )
    group.add_argument(
        "--token-file",
        default=os.environ.get("MESHMINT_TOKEN_FILE") or None,
        metavar="FILE",
        help="file with the token",
    )
    group.add_argument(
        "--server-name",
        metavar="NAME",
        help="name in the server's certificate, if it is not that of --server",
    )
    group.add_argument(
        "--insecure",
        action="store_true",
        help="no TLS; only for loopback and unix sockets",
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=10.0,
        metavar="TIME",
        help="for everything, with retries, such as 30s (default: 10s)",
    )


def _add_certificate(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("certificate", "Names may be given more than once.")
    group.add_argument(
        "--role", default="", metavar="NAME", help="default: the one role that fits you"
    )
    group.add_argument("--cn", default="", metavar="NAME", help="common name")
    for option, example in (
        ("--dns", "NAME"),
        ("--ip", "ADDRESS"),
        ("--uri", "URI"),
        ("--email", "ADDRESS"),
    ):
        group.add_argument(option, action="append", default=[], metavar=example)
    end = group.add_mutually_exclusive_group()
    end.add_argument("--ttl", type=_duration, metavar="TIME", help="lifetime, such as 1h or 7d")
    end.add_argument(
        "--not-after", type=_time, metavar="TIME", help="end, such as 2030-01-31T12:00:00Z"
    )


def _add_output(parser: argparse.ArgumentParser, files: str) -> None:
    group = parser.add_argument_group("output", "Without any of these: PEM on stdout.")
    group.add_argument("--out", metavar="DIR", help=f"write {files} there")
    group.add_argument("--json", action="store_true", help="print JSON")


def _duration(text: str) -> timedelta:
    try:
        return duration_from_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _seconds(text: str) -> float:
    seconds = _duration(text).total_seconds()
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError("it must be more than nothing")
    return seconds


def _time(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time with a zone, such as 2030-01-31T12:00:00Z"
        )
    return moment


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _version() -> str:
    try:
        return version("meshmint")
    except PackageNotFoundError:
        return "(not installed)"
