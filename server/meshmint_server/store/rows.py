"""What the store keeps, as values. Times are UTC, to the microsecond."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

__all__ = ["IssuerRow", "IssuerState", "Page", "RecordFilter", "RecordRow", "RoleRow"]


T = TypeVar("T")


class IssuerState(StrEnum):
    """State of an issuer. ``pending``: key and CSR made, certificate awaited."""

    PENDING = "pending"
    NEXT = "next"
    ACTIVE = "active"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class RecordRow:
    """What is kept of one issued certificate.

    Attributes:
        serial_number: Lower-case hexadecimal, no separators, no leading zeros.
        certificate: DER.
        names: Every SAN as "DNS:…", "IP:…", "URI:…", "email:…", "other:<oid>;UTF8:…".
        request_id: Id of the RPC, as in the log.
        created_at: Set by the service when it hands the row over.
    """

    serial_number: str
    certificate: bytes
    issuer: str
    role: str
    authenticator: str
    caller: str
    spiffe_id: str | None
    subject: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    created_at: datetime
    request_id: str


@dataclass(frozen=True, slots=True)
class RoleRow:
    """One role: its name and its canonical JSON document."""

    name: str
    document: str


@dataclass(frozen=True, slots=True)
class IssuerRow:
    """One issuer.

    Attributes:
        key_uri: Where the signing key is; path attributes only, never a PIN.
        public_key: SubjectPublicKeyInfo, DER.
        certificate: DER; None while pending.
        chain: DER certificates above it, nearest first, root left out.
        roots: DER root certificates.
    """

    name: str
    state: IssuerState
    key_uri: str
    public_key: bytes
    certificate: bytes | None
    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records to list. What is set must match exactly; ``_from`` is inclusive."""

    role: str | None = None
    caller: str | None = None
    authenticator: str | None = None
    spiffe_id: str | None = None
    issuer: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    expires_from: datetime | None = None
    expires_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page and the token of the next; empty on the last page."""

    items: tuple[T, ...]
    next_page_token: str
