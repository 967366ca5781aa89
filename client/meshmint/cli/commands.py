"""What each command does: read, call, print.

PEM and JSON go to stdout, for other programs; the table and the warnings go to
stderr, for people, unless the table is all there is to print.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from meshmint.admin import AdminClient, AdminOptions
from meshmint.admin_operations import Record
from meshmint.cli import issuers, records
from meshmint.cli.agent import run_agent
from meshmint.cli.errors import DONE, NOT_VERIFIED
from meshmint.cli.inspection import inspect_certificate
from meshmint.cli.jwt_svid import check_jwt_svid, print_jwt_svid, request_jwt_svid
from meshmint.cli.view import Row, inspection_rows, write_columns, write_table
from meshmint.client import Client
from meshmint.errors import AnswerRefused, ConfigurationError
from meshmint.keys import PrivateKey
from meshmint.requests import CertificateOptions
from meshmint.results import Chain, IssuedCertificate, SignedCertificate
from meshmint.tokens import TokenFile, TokenSource
from meshmint.verify import check_chain, order_chain

__all__ = ["run"]

_MAX_INPUT_BYTES = 4 << 20


def run(arguments: argparse.Namespace) -> int:
    """Runs a parsed command line and returns the exit status.

    Raises:
        MeshmintError: A call failed, or something given cannot be used.
        OSError: A file cannot be read or written.
    """
    match arguments.command:
        case "issue":
            return _issue(arguments)
        case "sign":
            return _sign(arguments)
        case "chain":
            return _chain(arguments)
        case "jwt-svid":
            return _jwt_svid(arguments)
        case "records":
            return _records(arguments)
        case "issuers":
            return _issuers(arguments)
        case "rotate":
            return _rotate(arguments)
        case "revoke":
            return _revoke(arguments)
        case "agent":
            return run_agent(arguments)
        case _:
            return _inspect(arguments)


def _issue(arguments: argparse.Namespace) -> int:
    _make_ready(arguments.out)
    with _client(arguments) as client:
        if arguments.server_key:
            issued = client.issue(
                arguments.role, key_algorithm=arguments.key_algorithm, **_options(arguments)
            )
        else:
            issued = client.request_certificate(
                arguments.role,
                key_algorithm=arguments.key_algorithm or "ec-p256",
                **_options(arguments),
            )
    return _print_certificate(issued, arguments)


def _sign(arguments: argparse.Namespace) -> int:
    csr = _read(arguments.csr, "the CSR")
    _make_ready(arguments.out)
    with _client(arguments) as client:
        signed = client.sign(csr, arguments.role, **_options(arguments))
    return _print_certificate(signed, arguments)


def _chain(arguments: argparse.Namespace) -> int:
    _make_ready(arguments.out)
    with _client(arguments) as client:
        chain = client.get_chain(arguments.issuer)
    files = chain.write_files(arguments.out) if arguments.out else []
    if arguments.json:
        document = {
            "issuer": chain.issuer,
            "trust_domain": chain.trust_domain,
            "not_after": _rfc3339(chain.not_after),
            "chain": chain.chain_pem,
            "trust_bundle": chain.trust_bundle_pem,
            "jwt_keys": json.loads(chain.jwt_keys),
        }
        _print_json(document, files)
        return DONE
    _print_table(_chain_rows(chain, files), only_output=bool(files))
    if not files:
        if arguments.only != "bundle":
            _print_pem(chain.chain_pem)
        if arguments.only != "chain":
            _print_pem(chain.trust_bundle_pem)
    return DONE


def _jwt_svid(arguments: argparse.Namespace) -> int:
    check_jwt_svid(arguments)
    with _client(arguments) as client:
        svid = request_jwt_svid(client, arguments)
    print_jwt_svid(svid, arguments)
    return DONE


def _revoke(arguments: argparse.Namespace) -> int:
    certificate = _read_certificates(arguments.certificate)[0] if arguments.certificate else None
    key = _read_key(arguments.key) if arguments.key else None
    with _client(arguments) as client:
        revocation = client.revoke(
            arguments.serial, certificate=certificate, reason=arguments.reason, private_key=key
        )
    if arguments.json:
        _print_json({**asdict(revocation), "revocation_time": _rfc3339(revocation.revocation_time)})
        return DONE
    rows: list[Row] = [
        ("Revoked", ["before: nothing has changed"] if revocation.already_revoked else ["now"], ""),
        ("Serial", [revocation.serial_number], "bold"),
        ("Issuer", [revocation.issuer], ""),
        ("Since", [f"{revocation.revocation_time:%Y-%m-%d %H:%M:%S} UTC"], ""),
        ("Reason", [revocation.reason], ""),
    ]
    write_table(rows, sys.stdout)
    return DONE


def _inspect(arguments: argparse.Namespace) -> int:
    certificate, *others = _read_certificates(arguments.file)
    try:
        found = inspect_certificate(certificate)
    except ValueError as error:
        raise AnswerRefused(
            f"the certificate in {arguments.file} is malformed: {error}", reason="MALFORMED"
        ) from error
    now = datetime.now(UTC)
    verified: bool | None = None
    verdict = ""
    if arguments.bundle:
        if arguments.chain:
            others += _read_certificates(arguments.chain)
        roots = _read_certificates(arguments.bundle)
        chain = order_chain(certificate, others)
        try:
            check_chain(certificate, chain, roots, now=now)
            verified, verdict = True, f"verified, with {len(chain)} in between"
        except AnswerRefused as error:
            verified, verdict = False, f"NOT verified: {error.message}"
    if arguments.json:
        document = found.document()
        if verified is not None:
            document |= {"is_verified": verified, "verdict": verdict}
        _print_json(document)
    else:
        rows = inspection_rows(found, now)
        if verdict:
            rows.append(("Chain", [verdict], "green" if verified else "red"))
        elif others:
            rows.append(("Also in there", [f"{len(others)} more (--bundle checks the chain)"], ""))
        write_table(rows, sys.stdout)
    return NOT_VERIFIED if verified is False else DONE


def _records(arguments: argparse.Namespace) -> int:
    only = records.record_filter(arguments)
    with AdminClient(arguments.server, **_connection(arguments)) as client:
        if arguments.serial:
            return _print_record(client.get_record(arguments.serial), arguments)
        # One more, to know whether there are more.
        found = records.find(client, only, arguments.limit + 1)
        shown = itertools.islice(found, arguments.limit)
        if arguments.json:
            for record in shown:
                print(json.dumps(records.document(record), ensure_ascii=False))
        else:
            write_columns(records.HEADINGS, map(records.columns, shown), sys.stdout)
        if next(found, None) is not None:
            print(f"note: there are more than {arguments.limit}; see --limit", file=sys.stderr)
    return DONE


def _print_record(record: Record, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps(records.document(record), ensure_ascii=False))
        return DONE
    [certificate] = x509.load_pem_x509_certificates(record.certificate_pem.encode())
    rows = inspection_rows(inspect_certificate(certificate), datetime.now(UTC))
    rows += [
        ("Role", [record.role], ""),
        ("Caller", [f"{record.caller} ({record.authenticator})"], ""),
        ("Issuer's name", [record.issuer], ""),
        ("Revoked", _revocation_lines(record), "red"),
        ("Recorded", [f"{record.create_time:%Y-%m-%d %H:%M:%S} UTC"], ""),
        ("Request", [record.request_id], "dim"),
    ]
    _print_table(rows, only_output=False)
    _print_pem([record.certificate_pem])
    return DONE


def _revocation_lines(record: Record) -> list[str]:
    if record.revocation_time is None:
        return []
    return [f"{record.revocation_time:%Y-%m-%d %H:%M:%S} UTC: {record.revocation_reason}"]


def _issuers(arguments: argparse.Namespace) -> int:
    with AdminClient(arguments.server, **_connection(arguments)) as client:
        issuers.show(client, arguments)
    return DONE


def _rotate(arguments: argparse.Namespace) -> int:
    # Certificates alone are sent, whatever else is in the files.
    certificates = "".join(
        certificate.public_bytes(Encoding.PEM).decode("ascii")
        for name in arguments.files
        for certificate in _read_certificates(name)
    )
    with AdminClient(arguments.server, **_connection(arguments)) as client:
        issuers.rotate(client, arguments, certificates)
    return DONE


def _client(arguments: argparse.Namespace) -> Client:
    return Client(arguments.server, **_connection(arguments))


def _connection(arguments: argparse.Namespace) -> AdminOptions:
    return {
        "token": _token(arguments),
        "root_certificates": None if arguments.ca_file is None else Path(arguments.ca_file),
        "insecure": arguments.insecure,
        "server_name": arguments.server_name,
        "timeout": arguments.timeout,
    }


def _token(arguments: argparse.Namespace) -> TokenSource | None:
    if arguments.token_file:
        return TokenFile(Path(arguments.token_file))
    return os.environ.get("MESHMINT_TOKEN") or None


def _options(arguments: argparse.Namespace) -> CertificateOptions:
    return {
        "common_name": arguments.cn,
        "dns_names": arguments.dns,
        "ip_addresses": arguments.ip,
        "uris": arguments.uri,
        "email_addresses": arguments.email,
        "ttl": arguments.ttl,
        "not_after": arguments.not_after,
    }


def _print_certificate(signed: SignedCertificate, arguments: argparse.Namespace) -> int:
    for warning in signed.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    files = signed.write_files(arguments.out) if arguments.out else []
    key = signed.private_key_pem if isinstance(signed, IssuedCertificate) else ""
    if arguments.json:
        document: dict[str, Any] = {
            "certificate": signed.certificate_pem,
            "chain": signed.chain_pem,
            "trust_bundle": signed.trust_bundle_pem,
            "serial_number": signed.serial_number,
            "spiffe_id": signed.spiffe_id,
            "not_before": _rfc3339(signed.not_before),
            "not_after": _rfc3339(signed.not_after),
            "role": signed.role,
            "issuer": signed.issuer,
            "warnings": signed.warnings,
        }
        if key and not files:
            document["private_key"] = key
        _print_json(document, files)
        return DONE
    rows = inspection_rows(inspect_certificate(signed.certificate), datetime.now(UTC))
    # The client refuses an answer that does not chain to the bundle.
    rows += [
        ("Chain", [f"verified, with {len(signed.chain)} in between"], "green"),
        ("Role", [signed.role], ""),
        _files_row(files),
    ]
    _print_table(rows, only_output=bool(files))
    if not files:
        _print_pem([signed.certificate_pem, *signed.chain_pem, *([key] if key else [])])
    return DONE


def _chain_rows(chain: Chain, files: Sequence[Path]) -> list[Row]:
    return [
        ("Issuer", [chain.issuer], "bold"),
        ("Trust domain", [chain.trust_domain], ""),
        ("Chain", [one.subject.rfc4514_string() or "(empty)" for one in chain.chain], ""),
        ("Roots", [one.subject.rfc4514_string() or "(empty)" for one in chain.trust_bundle], ""),
        ("Valid to", [f"{chain.not_after:%Y-%m-%d %H:%M:%S} UTC"], ""),
        _files_row(files),
    ]


def _files_row(files: Sequence[Path]) -> Row:
    return ("Files", [str(path) for path in files], "")


def _print_table(rows: Sequence[Row], *, only_output: bool) -> None:
    if only_output:
        write_table(rows, sys.stdout)
    elif sys.stderr.isatty():
        write_table(rows, sys.stderr)
        print(file=sys.stderr)


def _print_pem(pems: Sequence[str]) -> None:
    for pem in pems:
        print(pem.rstrip("\n"))


def _print_json(document: dict[str, Any], files: Sequence[Path] = ()) -> None:
    if files:
        document["files"] = [str(path) for path in files]
    print(json.dumps(document, indent=2, ensure_ascii=False))


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _make_ready(directory: str | None) -> None:
    """Finds out before a certificate is minted whether it can be written."""
    if directory is None:
        return
    folder = Path(directory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigurationError(f"the directory {folder} cannot be written to")


def _read(name: str, what: str) -> bytes:
    try:
        if name == "-":
            content = sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1)
        else:
            with Path(name).open("rb") as file:
                content = file.read(_MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {what} from {name}: {error.strerror or error}"
        ) from error
    if not content.strip():
        raise ConfigurationError(f"{what} from {'stdin' if name == '-' else name} is empty")
    if len(content) > _MAX_INPUT_BYTES:
        raise ConfigurationError(f"{what} in {name} has more than 4 MiB")
    return content


def _read_key(name: str) -> PrivateKey:
    try:
        key = load_pem_private_key(_read(name, "the private key"), None)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"there is no private key in {name} that can be used: PEM without a passphrase is "
            "expected"
        ) from error
    if not isinstance(key, PrivateKey):
        raise ConfigurationError(f"the private key in {name} is not RSA, EC or Ed25519")
    return key


def _read_certificates(name: str) -> list[x509.Certificate]:
    content = _read(name, "certificates")
    try:
        if b"-----BEGIN " in content:
            return x509.load_pem_x509_certificates(content)
        return [x509.load_der_x509_certificate(content)]
    except ValueError as error:
        is_csr = b"-----BEGIN CERTIFICATE REQUEST" in content
        hint = "it is a CSR: see openssl req -text" if is_csr else "PEM or DER is expected"
        raise ConfigurationError(f"there is no certificate in {name}: {hint}") from error
