"""The life of an issuer, names to search by, revocations, CRLs and federated bundles.

A migration stands for ever as it was released, so it repeats the columns
rather than importing the schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Adds tables and columns; the release before goes on with them."""
    op.create_table(
        "record_names",
        sa.Column("name", _TEXT, primary_key=True),
        sa.Column("created_at", sa.BigInteger, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sqlite_with_rowid=False,
    )
    op.create_index("record_names_sequence", "record_names", ["sequence"])
    op.create_table(
        "revocations",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("serial_number", _TEXT, nullable=False),
        sa.Column("issuer", _TEXT, nullable=False),
        sa.Column("shard", sa.Integer, nullable=False),
        sa.Column("reason", sa.Integer, nullable=False),
        sa.Column("revoked_at", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("authenticator", _TEXT, nullable=False),
        sa.Column("caller", _TEXT, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.UniqueConstraint("serial_number", name="revocations_serial_number"),
        sqlite_autoincrement=True,
    )
    op.create_index("revocations_shard", "revocations", ["issuer", "shard", "sequence"])
    op.create_index("revocations_not_after", "revocations", ["not_after", "sequence"])
    op.create_table(
        "crls",
        sa.Column("issuer", _TEXT, primary_key=True),
        sa.Column("shard", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", _TEXT, primary_key=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("base_number", sa.BigInteger, nullable=True),
        sa.Column("this_update", sa.BigInteger, nullable=False),
        sa.Column("next_update", sa.BigInteger, nullable=False),
        sa.Column("through", sa.BigInteger, nullable=False),
        sa.Column("entries", sa.BigInteger, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "federated_bundles",
        sa.Column("trust_domain", _TEXT, primary_key=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=True),
        sa.Column("fetched_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "duties",
        sa.Column("name", _TEXT, primary_key=True),
        sa.Column("done_at", sa.BigInteger, nullable=False),
    )
    for name in ("published_at", "activated_at", "retired_at"):
        op.add_column("issuers", sa.Column(name, sa.BigInteger, nullable=True))
    op.add_column(
        "issuers", sa.Column("crl_shards", sa.Integer, nullable=False, server_default="1")
    )
    op.add_column("issuers", sa.Column("crl_url", _TEXT, nullable=True))
    op.add_column("issuers", sa.Column("last_failure", _TEXT, nullable=True))
    # Who knows since when: those of before count as published when they were made.
    op.execute("UPDATE issuers SET published_at = created_at WHERE certificate IS NOT NULL")
    op.execute("UPDATE issuers SET activated_at = created_at WHERE state = 'active'")
    revisions = sa.table("revisions", sa.column("kind"), sa.column("value"))
    op.bulk_insert(revisions, [{"kind": "crls", "value": 0}, {"kind": "federation", "value": 0}])
    # Those of before have no names yet: too many for a migration, the leader gives them some.
    op.execute(
        "INSERT INTO revisions (kind, value) "
        "SELECT 'unnamed_records', coalesce(max(sequence), 0) FROM records"
    )


def downgrade() -> None:
    """Data would be lost that nobody could make again."""
    raise NotImplementedError("this schema is not taken back")
