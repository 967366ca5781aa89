"""Records of issued certificates: which ones to list, and what they look like."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast

from meshmint.admin import AdminClient
from meshmint.admin_operations import Record, RecordFilter

__all__ = ["HEADINGS", "add_record_filter", "columns", "document", "find", "record_filter"]

HEADINGS = ("RECORDED", "VALID TO", "REVOKED", "SERIAL", "ROLE", "CALLER", "SPIFFE ID OR NAMES")

_LARGEST_PAGE = 1000

_TEXTS = {
    "spiffe_id": ("ID", "with this SPIFFE ID"),
    "name": ("NAME", "with this name of any kind, or this common name"),
    "caller": ("CALLER", "issued to this caller, as its authenticator names it"),
    "authenticator": ("NAME", "whose caller this authenticator vouched for"),
    "role": ("NAME", "issued under this role"),
    "issuer": ("NAME", "issued by this issuer"),
}
_TIMES = {
    "created_from": "recorded then or later, such as 2030-01-31T12:00:00Z",
    "created_before": "recorded before then",
    "expires_from": "expires then or later",
    "expires_before": "expires before then",
}


def add_record_filter(parser: argparse.ArgumentParser, time: Any) -> None:
    """Adds the options that choose records; `time` reads a point in time."""
    group = parser.add_argument_group("which", "All that is given must match, exactly.")
    for name, (metavar, meaning) in _TEXTS.items():
        group.add_argument(_option(name), metavar=metavar, help=meaning)
    for name, meaning in _TIMES.items():
        group.add_argument(_option(name), metavar="TIME", type=time, help=meaning)


def record_filter(arguments: argparse.Namespace) -> RecordFilter:
    """What was chosen with these options."""
    given = {name: getattr(arguments, name) for name in (*_TEXTS, *_TIMES)}
    return cast("RecordFilter", {name: value for name, value in given.items() if value is not None})


def find(client: AdminClient, only: RecordFilter, limit: int) -> Iterator[Record]:
    """The newest records that match, at most so many, read page by page."""
    token = ""
    while limit > 0:
        page = client.list_records(page_size=min(limit, _LARGEST_PAGE), page_token=token, **only)
        yield from page.items
        limit -= len(page.items)
        token = page.next_page_token
        if not token:
            return


def columns(record: Record) -> tuple[str, ...]:
    """A record as a line of a table, under `HEADINGS`."""
    return (
        _time(record.create_time),
        _time(record.not_after),
        record.revocation_reason or "-",
        record.serial_number,
        record.role,
        record.caller,
        record.spiffe_id or " ".join(record.names) or record.subject,
    )


def document(record: Record) -> dict[str, Any]:
    """A record in the types that JSON has; without a certificate where it has none."""
    values = asdict(record)
    certificate = values.pop("certificate_pem")
    if certificate:
        values["certificate"] = certificate
    return {
        name: value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
        for name, value in values.items()
    }


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}"
