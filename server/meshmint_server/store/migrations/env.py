"""Alembic's entry: runs the migrations on the connection that it is given.

It never opens a connection of its own: `meshmint_server.store.migrate` holds
the lock and the transaction.
"""

from alembic import context
from meshmint_server.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
