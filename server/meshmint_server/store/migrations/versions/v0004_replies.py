"""Replies that are kept for a while, so that a retry gets what the first attempt made.

A migration stands for ever as it was released, so it repeats the columns
rather than importing the schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Adds a table; the release before goes on without it."""
    op.create_table(
        "replies",
        sa.Column("sequence", _SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("tag", sa.LargeBinary, nullable=False),
        sa.Column("serial_number", _TEXT, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("tag", name="replies_tag"),
    )


def downgrade() -> None:
    """Retries would mint again what has been minted."""
    raise NotImplementedError("this schema is not taken back")
