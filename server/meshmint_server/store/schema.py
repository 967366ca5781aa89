"""The tables, as SQLAlchemy Core sees them; migrations make them.

Nothing here runs a statement. A change needs a migration beside it: a test
compares this module with what the migrations really build.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)

__all__ = [
    "Microseconds",
    "crls",
    "duties",
    "federated_bundles",
    "fetch_failures",
    "issuers",
    "jwt_keys",
    "metadata",
    "record_names",
    "records",
    "replies",
    "revisions",
    "revocations",
    "roles",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Microseconds(TypeDecorator[datetime]):
    """A point in time as microseconds since 1970, UTC: the same in every dialect."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else to_microseconds(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else from_microseconds(value)


def to_microseconds(value: datetime) -> int:
    """Microseconds since 1970 of an aware time. A naive one is a bug: TypeError."""
    return (value - EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> datetime:
    """The reverse of `to_microseconds`."""
    return EPOCH + timedelta(microseconds=value)


# Bytewise order in both dialects, so that a list has one order and one meaning.
_TEXT = Text().with_variant(Text(collation="C"), "postgresql")
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")

metadata = MetaData()

records = Table(
    "records",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("serial_number", _TEXT, nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("issuer", _TEXT, nullable=False),
    Column("role", _TEXT, nullable=False),
    Column("authenticator", _TEXT, nullable=False),
    Column("caller", _TEXT, nullable=False),
    Column("spiffe_id", _TEXT, nullable=True),
    Column("subject", _TEXT, nullable=False),
    Column("names", JSON, nullable=False),
    Column("not_before", Microseconds, nullable=False),
    Column("not_after", Microseconds, nullable=False),
    Column("created_at", Microseconds, nullable=False),
    Column("request_id", _TEXT, nullable=False),
    UniqueConstraint("serial_number", name="records_serial_number"),
    sqlite_autoincrement=True,
)

# Lists run newest first, so each index holds that order after what it selects
# by, and carries not_after so that expiry is checked without reading the row.
_NEWEST = ("created_at", "sequence", "not_after")
FILTERED = ("spiffe_id", "caller", "role", "issuer", "authenticator")
Index("records_newest", *(records.c[name] for name in _NEWEST))
for _column in FILTERED:
    Index(f"records_{_column}", *(records.c[name] for name in (_column, *_NEWEST)))

# The names to search by: all but the SPIFFE ID, which records has an index of, so that
# a certificate with nothing else costs no row here. In the order of the lists; the
# index is for the tidying, which knows only what goes.
record_names = Table(
    "record_names",
    metadata,
    Column("name", _TEXT, primary_key=True),
    Column("created_at", Microseconds, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)
Index("record_names_sequence", record_names.c.sequence)

# What a retry needs beside the record, for the minutes in which there may be one. The tag
# and what is sealed come from the caller's secret request id, which is not kept.
replies = Table(
    "replies",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("tag", LargeBinary, nullable=False),
    Column("serial_number", _TEXT, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("expires_at", Microseconds, nullable=False),
    UniqueConstraint("tag", name="replies_tag"),
)

# One row per revoked certificate, which holds all that CRLs and OCSP need: records may
# be tidied away, or never have been kept. The sequence is handed out under a lock, so
# it is the order of commits: who has seen one number has seen all lower ones.
revocations = Table(
    "revocations",
    metadata,
    Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
    Column("serial_number", _TEXT, nullable=False),
    Column("issuer", _TEXT, nullable=False),
    Column("shard", Integer, nullable=False),
    Column("reason", Integer, nullable=False),
    Column("revoked_at", Microseconds, nullable=False),
    Column("not_after", Microseconds, nullable=False),
    Column("authenticator", _TEXT, nullable=False),
    Column("caller", _TEXT, nullable=False),
    Column("request_id", _TEXT, nullable=False),
    UniqueConstraint("serial_number", name="revocations_serial_number"),
    sqlite_autoincrement=True,
)
Index("revocations_shard", *(revocations.c[name] for name in ("issuer", "shard", "sequence")))
Index("revocations_not_after", *(revocations.c[name] for name in ("not_after", "sequence")))

# The newest CRL of each kind. Replaced whole, and only by one with a higher number.
crls = Table(
    "crls",
    metadata,
    Column("issuer", _TEXT, primary_key=True),
    Column("shard", Integer, primary_key=True, autoincrement=False),
    Column("kind", _TEXT, primary_key=True),
    Column("number", BigInteger, nullable=False),
    Column("base_number", BigInteger, nullable=True),
    Column("this_update", Microseconds, nullable=False),
    Column("next_update", Microseconds, nullable=False),
    Column("through", BigInteger, nullable=False),
    Column("entries", BigInteger, nullable=False),
    Column("document", LargeBinary, nullable=False),
)

# The trust bundles of other trust domains, as they were fetched. Never merged.
federated_bundles = Table(
    "federated_bundles",
    metadata,
    Column("trust_domain", _TEXT, primary_key=True),
    Column("document", LargeBinary, nullable=False),
    Column("sequence", BigInteger, nullable=True),
    Column("fetched_at", Microseconds, nullable=False),
)

# Why a bundle could not be fetched the last time; no row where it could. For people.
fetch_failures = Table(
    "fetch_failures",
    metadata,
    Column("trust_domain", _TEXT, primary_key=True),
    Column("failed_at", Microseconds, nullable=False),
    Column("problem", _TEXT, nullable=False),
)

# When a duty that runs by the calendar was last done, by whichever replica.
duties = Table(
    "duties",
    metadata,
    Column("name", _TEXT, primary_key=True),
    Column("done_at", Microseconds, nullable=False),
)

roles = Table(
    "roles",
    metadata,
    Column("name", _TEXT, primary_key=True),
    Column("document", _TEXT, nullable=False),
)

issuers = Table(
    "issuers",
    metadata,
    Column("name", _TEXT, primary_key=True),
    Column("state", _TEXT, nullable=False),
    Column("key_uri", _TEXT, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("certificate", LargeBinary, nullable=True),
    Column("chain", JSON, nullable=False),
    Column("roots", JSON, nullable=False),
    Column("created_at", Microseconds, nullable=False),
    Column("published_at", Microseconds, nullable=True),
    Column("activated_at", Microseconds, nullable=True),
    Column("retired_at", Microseconds, nullable=True),
    Column("crl_shards", Integer, nullable=False, server_default="1"),
    Column("crl_url", _TEXT, nullable=True),
    Column("last_failure", _TEXT, nullable=True),
    Column("longest_leaf", BigInteger, nullable=True),  # microseconds
)
# Two active issuers would be a question without an answer: the database says no.
Index(
    "issuers_one_active",
    issuers.c.state,
    unique=True,
    sqlite_where=text("state = 'active'"),
    postgresql_where=text("state = 'active'"),
)

# The keys that sign JWT-SVIDs. Their revision is that of the issuers: both are in the
# trust bundle, whose sequence it is.
jwt_keys = Table(
    "jwt_keys",
    metadata,
    Column("key_id", _TEXT, primary_key=True),
    Column("state", _TEXT, nullable=False),
    Column("key_uri", _TEXT, nullable=False),
    Column("public_key", LargeBinary, nullable=False),
    Column("created_at", Microseconds, nullable=False),
    Column("published_at", Microseconds, nullable=True),
    Column("activated_at", Microseconds, nullable=True),
    Column("retired_at", Microseconds, nullable=True),
)
Index(
    "jwt_keys_one_active",
    jwt_keys.c.state,
    unique=True,
    sqlite_where=text("state = 'active'"),
    postgresql_where=text("state = 'active'"),
)

# One row per kind of object that workers keep in memory; the value grows with
# every change, in the transaction of the change.
revisions = Table(
    "revisions",
    metadata,
    Column("kind", _TEXT, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
