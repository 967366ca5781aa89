"""What outlives a process: records, roles and issuers, in SQLite or PostgreSQL."""

from meshmint_server.store.database import TimeLimits
from meshmint_server.store.migrate import SchemaState
from meshmint_server.store.rows import (
    IssuerRow,
    IssuerState,
    Page,
    RecordFilter,
    RecordRow,
    RoleRow,
)
from meshmint_server.store.store import Store
from meshmint_server.store.url import InvalidStoreUrl, parse_store_url

__all__ = [
    "InvalidStoreUrl",
    "IssuerRow",
    "IssuerState",
    "Page",
    "RecordFilter",
    "RecordRow",
    "RoleRow",
    "SchemaState",
    "Store",
    "TimeLimits",
    "parse_store_url",
]
