"""The names that records are found by, in one spelling. Pure.

The SPIFFE ID is not among them: records has an index of it.
"""

from __future__ import annotations

import ipaddress

from meshmint_server.store.rows import RecordRow

__all__ = ["normal_name", "searched_names"]

# PostgreSQL's indexes hold texts up to some 2,700 bytes. The longest SPIFFE ID
# (SPIFFE-ID section 2.3) fits, and so does all that is not made to be long.
_MOST_BYTES = 2048


def searched_names(row: RecordRow) -> set[str]:
    """The names that a record is found by: of any kind, without it, and the common name.

    A name of more than 2,048 bytes is left out: it stands in the record all the same.
    """
    spiffe_id = None if row.spiffe_id is None else f"URI:{row.spiffe_id}"
    names = {normal_name(_without_kind(name)) for name in row.names if name != spiffe_id}
    if row.common_name:
        names.add(normal_name(row.common_name))
    return {name for name in names if len(name.encode()) <= _MOST_BYTES}


def normal_name(text: str) -> str:
    """A name as it is searched by: in lower case; an IP address in its shortest form."""
    # Most names are none, and asking costs more than all the rest: an IPv4 address ends
    # with a digit, and one of IPv6 has a colon.
    if not text[-1:].isdigit() and ":" not in text:
        return text.lower()
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.lower()


def _without_kind(name: str) -> str:
    kind, _, value = name.partition(":")
    return value.partition(";UTF8:")[2] if kind == "other" else value
