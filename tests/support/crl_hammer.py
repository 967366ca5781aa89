"""Makes one CRL after the other, full and delta, until it is killed. A process of its own.

python -m support.crl_hammer <store URL> <key file>
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from meshmint_server.authority import CrlPublisher, CrlTimes
from meshmint_server.store import Store
from support.crls import Issuers, make_issuer
from support.software_key import SoftwareKey

# With an interval of nothing, each look finds a new one due.
EAGER = CrlTimes(
    lifetime=timedelta(hours=24),
    interval=timedelta(0),
    delay=timedelta(seconds=60),
    delta_lifetime=timedelta(hours=1),
)


async def hammer(url: str, key_file: Path) -> None:
    key = serialization.load_pem_private_key(key_file.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    issuer = make_issuer(key=SoftwareKey(key))
    store = Store.open(url)
    publisher = CrlPublisher(Issuers(issuer), store, EAGER, url=None)  # type: ignore[arg-type]
    while True:
        await publisher.run()
        Path(f"{key_file}.{os.getpid()}").touch()  # at work


if __name__ == "__main__":
    asyncio.run(hammer(sys.argv[1], Path(sys.argv[2])))
