"""What the store keeps, as values. Times are UTC, to the microsecond."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

__all__ = [
    "CrlKind",
    "CrlRow",
    "FederatedBundleRow",
    "FetchFailureRow",
    "IssuerRow",
    "IssuerState",
    "JwtKeyRow",
    "JwtKeyState",
    "KeptReply",
    "Page",
    "RecordFilter",
    "RecordRow",
    "ReplyRow",
    "RevocationRow",
    "RevokedSerial",
    "RoleRow",
]


T = TypeVar("T")


class IssuerState(StrEnum):
    """State of an issuer.

    ``pending``: key and CSR made, certificate awaited. ``next``: published, and does not
    sign yet. ``active``: signs. ``retired``: signs no certificates, and is still
    published. ``gone``: nothing live chains to it; kept for the records alone.
    """

    PENDING = "pending"
    NEXT = "next"
    ACTIVE = "active"
    RETIRED = "retired"
    GONE = "gone"

    @property
    def is_published(self) -> bool:
        """Whether verifiers are told of it: its roots are in the trust bundle."""
        return self not in (IssuerState.PENDING, IssuerState.GONE)


@dataclass(frozen=True, slots=True)
class ReplyRow:
    """What is kept of a reply beside the record of its certificate.

    Attributes:
        tag: What it is found by; one reply has it.
        sealed: Opened by nobody but the caller's own request.
        expires_at: From then on it is as if it were not there.
    """

    tag: bytes
    sealed: bytes
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class RecordRow:
    """What is kept of one issued certificate.

    Attributes:
        serial_number: Lower-case hexadecimal, no separators, no leading zeros.
        certificate: DER.
        names: Every SAN as "DNS:…", "IP:…", "URI:…", "email:…", "other:<oid>;UTF8:…".
        request_id: Id of the RPC, as in the log.
        created_at: Set by the service when it hands the row over.
        common_name: Of the subject, to be found by. Only on the way in.
        reply: Kept with the record. Only on the way in.
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
    common_name: str | None = field(default=None, compare=False)
    reply: ReplyRow | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class KeptReply:
    """A reply with the record of its certificate."""

    reply: ReplyRow
    record: RecordRow


@dataclass(frozen=True, slots=True)
class RoleRow:
    """One role: its name and its canonical JSON document."""

    name: str
    document: str


@dataclass(frozen=True, slots=True)
class IssuerRow:
    """One issuer.

    Attributes:
        key_uri: Where the signing key is, or will be made; path attributes only, never a PIN.
        public_key: SubjectPublicKeyInfo, DER; empty until the key has been made.
        certificate: DER; None while pending.
        chain: DER certificates above it, nearest first, root left out.
        roots: DER root certificates.
        published_at: Since when its roots are in the trust bundle.
        activated_at: Since when it signs, or did.
        retired_at: Since when it no longer signs.
        crl_shards: Into how many its CRL is split. For life: certificates name theirs.
        crl_url: Base URL in the distribution points of a CRL that is split, for the same
            reason; None where the configured one holds.
        last_failure: Why the service's own last step with it failed; None if it did not.
        longest_leaf: The longest lifetime that its certificates could have, whoever signed
            and recorded or not; None until it signs. Not written with the row, but by
            `Store.note_longest_leaf`: it only grows.
    """

    name: str
    state: IssuerState
    key_uri: str
    public_key: bytes
    certificate: bytes | None
    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    created_at: datetime
    published_at: datetime | None = None
    activated_at: datetime | None = None
    retired_at: datetime | None = None
    crl_shards: int = 1
    crl_url: str | None = None
    last_failure: str | None = None
    longest_leaf: timedelta | None = field(default=None, compare=False)

    @property
    def has_key(self) -> bool:
        """Whether its key has been made."""
        return bool(self.public_key)


class JwtKeyState(StrEnum):
    """State of a key that signs JWT-SVIDs.

    ``pending``: its place is written down, and the key is made. ``next``: published, and
    does not sign yet. ``active``: signs. ``retired``: signs no more, and is still
    published. ``gone``: no token of it lives; kept to know whose the key in the token was.
    """

    PENDING = "pending"
    NEXT = "next"
    ACTIVE = "active"
    RETIRED = "retired"
    GONE = "gone"

    @property
    def is_published(self) -> bool:
        """Whether verifiers are told of it."""
        return self not in (JwtKeyState.PENDING, JwtKeyState.GONE)


@dataclass(frozen=True, slots=True)
class JwtKeyRow:
    """One key that signs JWT-SVIDs.

    Attributes:
        key_id: Its ``kid``, and the label of the key in its token.
        key_uri: Where it is, or will be made; path attributes only, never a PIN.
        public_key: SubjectPublicKeyInfo, DER; empty until the key has been made.
        published_at: Since when it is in the trust bundle.
        activated_at: Since when it signs, or did.
        retired_at: Since when it no longer signs.
    """

    key_id: str
    state: JwtKeyState
    key_uri: str
    public_key: bytes
    created_at: datetime
    published_at: datetime | None = None
    activated_at: datetime | None = None
    retired_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class RevocationRow:
    """One revoked certificate.

    Attributes:
        serial_number: As in RecordRow.
        issuer: Name of the issuer that signed it.
        shard: Which of the issuer's CRLs lists it.
        reason: CRLReason (RFC 5280 section 5.3.1).
        not_after: When the certificate expires.
        authenticator: Who vouched for the caller that revoked it; empty with a proof of
            possession.
        caller: That caller; "proof of possession" without one.
    """

    serial_number: str
    issuer: str
    shard: int
    reason: int
    revoked_at: datetime
    not_after: datetime
    authenticator: str
    caller: str
    request_id: str


class RevokedSerial(NamedTuple):
    """What a CRL or an OCSP response says of a revoked certificate.

    Attributes:
        sequence: Grows in the order of commits: who has seen one has seen all lower ones.
    """

    sequence: int
    issuer: str
    serial_number: str
    revoked_at: datetime
    reason: int
    not_after: datetime


class CrlKind(StrEnum):
    """Whether a CRL is whole or tells what changed since a whole one."""

    FULL = "full"
    DELTA = "delta"


@dataclass(frozen=True, slots=True)
class CrlRow:
    """The newest CRL of one kind of one shard of one issuer.

    Attributes:
        number: CRL number (RFC 5280 section 5.2.3); full and delta share one series.
        base_number: Of a delta, the number of the full CRL that it builds on.
        through: The highest revocation sequence that it takes account of.
        entries: How many it lists.
        document: DER; empty where only the state was asked for.
    """

    issuer: str
    shard: int
    kind: CrlKind
    number: int
    base_number: int | None
    this_update: datetime
    next_update: datetime
    through: int
    entries: int
    document: bytes


@dataclass(frozen=True, slots=True)
class FederatedBundleRow:
    """The trust bundle of another trust domain, as it was fetched.

    Attributes:
        document: The JWK Set.
        sequence: Its spiffe_sequence, if it has one.
    """

    trust_domain: str
    document: bytes
    sequence: int | None
    fetched_at: datetime


@dataclass(frozen=True, slots=True)
class FetchFailureRow:
    """Why the last attempt to fetch the bundle of another trust domain failed.

    Attributes:
        problem: For people; nothing of what the other side sent.
    """

    trust_domain: str
    failed_at: datetime
    problem: str


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Which records to list. What is set must match exactly; ``_from`` is inclusive.

    Attributes:
        name: One of its names, without the type in front, or its common name; upper and
            lower case are the same, but in a SPIFFE ID.
    """

    role: str | None = None
    caller: str | None = None
    authenticator: str | None = None
    spiffe_id: str | None = None
    issuer: str | None = None
    name: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    expires_from: datetime | None = None
    expires_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page and the token of the next; empty on the last page."""

    items: tuple[T, ...]
    next_page_token: str
