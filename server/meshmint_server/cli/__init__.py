"""`meshmintd`, the operators' command. It parses, calls one thing, and prints."""

from meshmint_server.cli.program import main

__all__ = ["main"]
