"""`meshmintd` that is killed at one point of making an issuer's key: for crash loops.

As a program: the point, then meshmintd's arguments.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from meshmint_server.cli.program import main
from meshmint_server.keys import KeyRing, SigningKey
from meshmint_server.store import IssuerRow, Store

POINTS = ("reserved", "made", "written")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(point: str) -> None:
    """Has this process killed there."""
    make, write = KeyRing.find_or_generate, Store.put_issuer

    async def find_or_generate(ring: KeyRing, *arguments: Any) -> SigningKey:
        if point == "reserved":
            _die()
        key = await make(ring, *arguments)
        if point == "made":
            _die()
        return key

    async def put_issuer(store: Store, row: IssuerRow, **options: Any) -> bool:
        written = await write(store, row, **options)
        if point == "written" and row.has_key:
            _die()
        return written

    KeyRing.find_or_generate = find_or_generate  # type: ignore[method-assign, assignment]
    Store.put_issuer = put_issuer  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    interrupt(sys.argv[1])
    main(sys.argv[2:])
