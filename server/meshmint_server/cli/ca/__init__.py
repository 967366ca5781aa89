"""`meshmintd ca`: issuers, from a key and its CSR to the day when nothing chains to them."""

import typer

from meshmint_server.cli.ca.ceremony import csr, import_
from meshmint_server.cli.ca.rotation import remove, rotate
from meshmint_server.cli.ca.view import show

__all__ = ["ca"]

ca = typer.Typer(help="Issuers: key and CSR, import, rotation, a look.", no_args_is_help=True)
ca.command("csr")(csr)
ca.command("import")(import_)
ca.command("rotate")(rotate)
ca.command("remove")(remove)
ca.command("show")(show)
