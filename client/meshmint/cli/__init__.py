"""The command `meshmint`: certificates from a shell.

Exit statuses: 0 done; 1 anything not named here, such as a file that cannot be
written or a bug in the server; 2 wrong usage; 3 refused by the server; 4 not
available, try again later; 5 a certificate that does not hold. An expected
error never shows a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# gRPC's core would write lines of its own about failed handshakes to stderr. It
# looks at this once, when it is loaded, which the imports below do.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from meshmint.cli.arguments import parse_arguments
from meshmint.cli.commands import run
from meshmint.cli.errors import FAILED, INTERRUPTED, explain
from meshmint.errors import MeshmintError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: What follows the command's name; None: those of this process.

    Returns:
        The exit status.
    """
    parsed = parse_arguments(arguments)
    try:
        status = run(parsed)
        sys.stdout.flush()
    except MeshmintError as error:
        return explain(error, sys.stderr)
    except BrokenPipeError:
        # The reader, such as head, has left. Python would complain at exit otherwise.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(f"error: cannot read or write{where}: {error.strerror or error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    return status
