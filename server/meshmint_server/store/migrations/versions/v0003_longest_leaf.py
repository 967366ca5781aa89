"""The longest lifetime of what an issuer may have signed without a record.

A migration stands for ever as it was released, so it repeats the columns
rather than importing the schema.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds a column; the release before goes on without it."""
    op.add_column("issuers", sa.Column("longest_leaf", sa.BigInteger, nullable=True))


def downgrade() -> None:
    """Refuses: what may still live would be forgotten. Restore a backup instead."""
    raise NotImplementedError("there is no way back; restore a backup")
