"""Runs the migrations. Apart from the rest, because it alone needs Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

__all__ = ["migrations", "upgrade"]


def migrations() -> Config:
    """Where they are."""
    config = Config()
    # A "%" in a path would be read as an interpolation.
    location = str(Path(__file__).parent / "migrations").replace("%", "%%")
    config.set_main_option("script_location", location)
    return config


def upgrade(connection: Connection) -> None:
    """Runs those that the database has not had yet, inside the connection's transaction."""
    config = migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
