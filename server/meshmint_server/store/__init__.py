"""What outlives a process: records, roles and issuers, in SQLite or PostgreSQL."""

from meshmint_server.store.database import TimeLimits
from meshmint_server.store.expired import ExpiredRevocation
from meshmint_server.store.leadership import Leadership
from meshmint_server.store.migrate import SchemaState
from meshmint_server.store.records import normal_serial_number
from meshmint_server.store.rows import (
    CrlKind,
    CrlRow,
    FederatedBundleRow,
    FetchFailureRow,
    IssuerRow,
    IssuerState,
    JwtKeyRow,
    JwtKeyState,
    KeptReply,
    Page,
    RecordFilter,
    RecordRow,
    ReplyRow,
    RevocationRow,
    RevokedSerial,
    RoleRow,
)
from meshmint_server.store.store import Store
from meshmint_server.store.url import InvalidStoreUrl, parse_store_url

__all__ = [
    "CrlKind",
    "CrlRow",
    "ExpiredRevocation",
    "FederatedBundleRow",
    "FetchFailureRow",
    "InvalidStoreUrl",
    "IssuerRow",
    "IssuerState",
    "JwtKeyRow",
    "JwtKeyState",
    "KeptReply",
    "Leadership",
    "Page",
    "RecordFilter",
    "RecordRow",
    "ReplyRow",
    "RevocationRow",
    "RevokedSerial",
    "RoleRow",
    "SchemaState",
    "Store",
    "TimeLimits",
    "normal_serial_number",
    "parse_store_url",
]
