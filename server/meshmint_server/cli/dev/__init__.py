"""`meshmintd dev`: a whole service from nothing, for one's own machine."""

from meshmint_server.cli.dev.command import dev

__all__ = ["dev"]
