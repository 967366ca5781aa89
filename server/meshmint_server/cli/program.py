"""The commands of `meshmintd`, and how each ends.

Exit status: 0 done; 1 refused or failed, with the reason on standard error;
2 the command line is wrong; 78 the configuration is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, NoReturn

import structlog
import typer

from meshmint_server.app import EXIT_CONFIG
from meshmint_server.audit import configure_logging
from meshmint_server.authn import shared_identities
from meshmint_server.cli.apply import apply
from meshmint_server.cli.ca import ca
from meshmint_server.cli.dev import dev
from meshmint_server.cli.doctor import SHARED_IDENTITIES_ADVICE, doctor
from meshmint_server.cli.jwt_keys import jwt_keys
from meshmint_server.cli.terminal import Failure, out, show_failure
from meshmint_server.config import Config, ConfigError
from meshmint_server.errors import MeshmintError
from meshmint_server.supervisor import Supervisor

__all__ = ["main"]

log = structlog.get_logger(__name__)

program = typer.Typer(
    name="meshmintd",
    help="Meshmint's service: X.509 certificates with SPIFFE IDs, signed in an HSM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
config_commands = typer.Typer(help="Looks at a configuration file.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="Configuration.")]


def _show_version(asked: bool) -> None:
    if asked:
        out.print(f"meshmintd {metadata.version('meshmint-server')}")
        raise typer.Exit


@program.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Shows the version."),
    ] = False,
) -> None:
    pass


@program.command()
def serve(config: ConfigFile) -> None:
    """Serves until SIGTERM. SIGHUP reads the configuration again."""
    loaded = Config.load(config)
    configure_logging(loaded.log.format, loaded.log.level)
    _warn(loaded)
    raise typer.Exit(Supervisor(loaded, lambda: _warn(Config.load(config))).run())


def _warn(loaded: Config) -> Config:
    """Has the log say what works and is hardly meant, once and not per worker."""
    for text in shared_identities(loaded.authenticators):
        log.warning("odd configuration", problem=text, advice=SHARED_IDENTITIES_ADVICE)
    return loaded


@config_commands.command("check")
def check(config: ConfigFile) -> None:
    """Says whether a configuration file can be used, and what is wrong with it."""
    loaded = Config.load(config)
    out.print(
        f"{config}: good. It serves {loaded.trust_domain} on {loaded.listen}, "
        f"with {len(loaded.authenticators)} authenticator(s).",
        markup=False,
    )


program.command()(apply)
program.command()(dev)
program.command()(doctor)
program.add_typer(ca, name="ca")
program.add_typer(jwt_keys, name="jwt-keys")
program.add_typer(config_commands, name="config")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and ends the process. Expected errors show no traceback.

    Raises:
        SystemExit: Always.
    """
    status = 1
    try:
        program(args=arguments, prog_name="meshmintd")
    except ConfigError as error:
        show_failure(Failure(str(error)))
        status = EXIT_CONFIG
    except MeshmintError as error:
        show_failure(Failure.of(error))
    except Failure as failure:
        show_failure(failure)
    raise SystemExit(status)
