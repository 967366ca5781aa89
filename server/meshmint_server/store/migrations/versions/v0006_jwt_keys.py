"""The keys that sign JWT-SVIDs.

A migration stands for ever as it was released, so it repeats the columns
rather than importing the schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Adds a table; the release before goes on without it."""
    op.create_table(
        "jwt_keys",
        sa.Column("key_id", _TEXT, primary_key=True),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("key_uri", _TEXT, nullable=False),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("published_at", sa.BigInteger, nullable=True),
        sa.Column("activated_at", sa.BigInteger, nullable=True),
        sa.Column("retired_at", sa.BigInteger, nullable=True),
    )
    op.create_index(
        "jwt_keys_one_active",
        "jwt_keys",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'active'"),
        postgresql_where=sa.text("state = 'active'"),
    )


def downgrade() -> None:
    """Refuses, as the others do. Restore a backup instead."""
    raise NotImplementedError("there is no way back; restore a backup")
