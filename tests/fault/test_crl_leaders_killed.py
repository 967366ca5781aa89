"""Leaders that are killed while they make CRLs: nothing half is handed out, no number falls."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from meshmint_server.authority import CrlBook, PublishedCrl
from meshmint_server.store import CrlKind, Store
from support.crls import make_issuer, revoke
from support.software_key import SoftwareKey

REVOKED = 300
LEADERS = 4
TESTS = Path(__file__).parents[1]


class Reader:
    """A worker that hands CRLs out, and looks closely at each."""

    def __init__(self, store: Store, key: SoftwareKey) -> None:
        self._book = CrlBook(store)
        self._key = key
        self._last: PublishedCrl | None = None
        self.numbers = [0]
        self.deltas = 0

    async def look(self) -> None:
        await self._book.refresh()
        crl = self._book.get("mesh-1", 0, CrlKind.FULL)
        delta = self._book.get("mesh-1", 0, CrlKind.DELTA)
        if delta is not None:
            assert x509.load_der_x509_crl(delta.der).is_signature_valid(self._key.public_key)
            self.deltas += 1
        if crl is None or crl is self._last:
            return
        self._last = crl
        read = x509.load_der_x509_crl(crl.der)
        assert read.is_signature_valid(self._key.public_key)
        assert len(read) == REVOKED
        number = read.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        assert number == crl.row.number > self.numbers[-1]
        self.numbers.append(number)


@pytest.mark.timeout(300)
async def test_killed_leaders_leave_nothing_half_and_no_number_falls(
    store_url: str, tmp_path: Path
) -> None:
    key = SoftwareKey()
    key_file = tmp_path / "key.pem"
    key_file.write_bytes(
        key.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    store = Store.open(store_url)
    await store.migrate()
    issuer = make_issuer(key=key)
    for _ in range(REVOKED):
        await revoke(store, issuer)
    reader = Reader(store, key)
    # All believe that they lead.
    leaders = [
        subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, "-m", "support.crl_hammer", store_url, key_file],
            cwd=TESTS,  # where "support" is found
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(LEADERS)
    ]
    try:
        at_work = [Path(f"{key_file}.{one.pid}") for one in leaders]
        while not all(file.exists() for file in at_work):
            assert all(leader.poll() is None for leader in leaders)
            await asyncio.sleep(0.1)
        for leader in leaders:
            # In the midst of making one: they do nothing else.
            wanted = len(reader.numbers) + 5
            while len(reader.numbers) < wanted:
                await reader.look()
                await asyncio.sleep(0.005)
            leader.kill()
            leader.wait()
        await reader.look()
        assert reader.deltas
    finally:
        for leader in leaders:
            leader.kill()
            leader.wait()
        await store.close()
