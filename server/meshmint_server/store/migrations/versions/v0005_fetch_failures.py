"""Why the bundles of other trust domains could not be fetched.

A migration stands for ever as it was released, so it repeats the columns
rather than importing the schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Adds a table; the release before goes on without it."""
    op.create_table(
        "fetch_failures",
        sa.Column("trust_domain", _TEXT, primary_key=True),
        sa.Column("failed_at", sa.BigInteger, nullable=False),
        sa.Column("problem", _TEXT, nullable=False),
    )


def downgrade() -> None:
    """Refuses, as the others do. Restore a backup instead."""
    raise NotImplementedError("there is no way back; restore a backup")
