"""Makes children that write an output over and over, to be killed; run as a program.

    writers.py DIRECTORY    a line on stdin begets a child, whose number goes to stdout;
                            when it has died, so does the word "dead"

Everything is imported before, so that a child begins to write at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from meshmint.agent.outputs import Output, PemOutput
from support.held import MeshCa

# Files as large as a real bundle makes them, so that half of one can be seen.
BUNDLE_ROOTS = 20


def write_for_ever(directory: Path, mesh: MeshCa) -> None:
    """A new identity at every turn."""
    settings = PemOutput.model_validate(
        {
            "format": "pem",
            "directory": directory,
            "files": {
                "certificate": "cert.pem",
                "chain": "chain.pem",
                "fullchain": "fullchain.pem",
                "key": "key.pem",
                "bundle": "bundle.pem",
                "combined": "combined.pem",
            },
        }
    )
    bundles = {
        name: type(bundle)(name, bundle.roots * BUNDLE_ROOTS)
        for name, bundle in mesh.bundles.items()
    }
    output = Output(settings)
    with output.lock():
        while True:
            output.write(mesh.issue(), bundles)


def main() -> None:
    """Serves stdin."""
    mesh = MeshCa()
    for _ in sys.stdin:
        child = os.fork()
        if child == 0:
            write_for_ever(Path(sys.argv[1]), mesh)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    main()
