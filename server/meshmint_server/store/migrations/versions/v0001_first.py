"""Records, roles, issuers and revisions.

A migration stands for ever as it was released, so it repeats the columns
rather than importing the schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_NEWEST = ("created_at", "sequence", "not_after")


def upgrade() -> None:
    """Builds the first schema."""
    op.create_table(
        "records",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("serial_number", _TEXT, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=False),
        sa.Column("issuer", _TEXT, nullable=False),
        sa.Column("role", _TEXT, nullable=False),
        sa.Column("authenticator", _TEXT, nullable=False),
        sa.Column("caller", _TEXT, nullable=False),
        sa.Column("spiffe_id", _TEXT, nullable=True),
        sa.Column("subject", _TEXT, nullable=False),
        sa.Column("names", sa.JSON, nullable=False),
        sa.Column("not_before", sa.BigInteger, nullable=False),
        sa.Column("not_after", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("request_id", _TEXT, nullable=False),
        sa.UniqueConstraint("serial_number", name="records_serial_number"),
        sqlite_autoincrement=True,
    )
    op.create_index("records_newest", "records", list(_NEWEST))
    for column in ("spiffe_id", "caller", "role", "issuer", "authenticator"):
        op.create_index(f"records_{column}", "records", [column, *_NEWEST])
    op.create_table(
        "roles",
        sa.Column("name", _TEXT, primary_key=True),
        sa.Column("document", _TEXT, nullable=False),
    )
    op.create_table(
        "issuers",
        sa.Column("name", _TEXT, primary_key=True),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("key_uri", _TEXT, nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("certificate", sa.LargeBinary, nullable=True),
        sa.Column("chain", sa.JSON, nullable=False),
        sa.Column("roots", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "issuers_one_active",
        "issuers",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )
    revisions = op.create_table(
        "revisions",
        sa.Column("kind", _TEXT, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(revisions, [{"kind": "roles", "value": 0}, {"kind": "issuers", "value": 0}])


def downgrade() -> None:
    """There is nothing before the first schema."""
    raise NotImplementedError("the first schema has no predecessor")
