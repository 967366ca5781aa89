"""bench/growth does not rot: what it fills in is what a service writes, and it runs."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from growth.fill import PROBES, Probe, fill_store
from growth.report import page
from meshmint_server.store import RecordFilter, Store
from support.rows import NOON, record_row

ROOT = Path(__file__).parents[2]
SVID = "spiffe://example.org/ns/shop/sa/cart"


def certificate() -> bytes:
    """A certificate whose serial number has 19 bytes, as all have."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), (1 << 150) + secrets.randbits(150), NOON, NOON
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


async def test_a_filled_store_holds_what_a_service_would_have_written(
    store_url: str,
) -> None:

    store = Store.open(store_url)
    await store.migrate()
    await store.record(record_row())
    probe = Probe(
        trust_domain="example.org", issuer="mesh-1", role="probe", authenticator="cluster",
        caller="system:serviceaccount:shop:cart", spiffe_id=SVID, name="probe.example.org",
        certificate=certificate(),
    )  # fmt: skip
    filled: list[int] = []
    revoked = await asyncio.to_thread(fill_store, store_url, 300, probe, filled.append)
    assert sum(filled) == 500
    after = record_row()
    await store.record(after)
    listed = (await store.list_records(RecordFilter(), 1000)).items
    assert len(listed) == 502
    # Every one is a whole record of its own certificate, of one workload or of many.
    mine = await store.list_records(RecordFilter(name=probe.name), 1000)
    assert len(mine.items) == PROBES
    assert {row.spiffe_id for row in mine.items} == {SVID}
    assert len((await store.list_records(RecordFilter(spiffe_id=SVID), 1000)).items) >= 200
    for row in listed[10:20]:
        record = await store.get_record(row.serial_number)
        assert record is not None
        if record.role.startswith("role-"):
            parsed = x509.load_der_x509_certificate(record.certificate)
            assert f"{parsed.serial_number:x}" == row.serial_number
    assert await store.latest_revocation() == revoked > 10
    told = await store.revocations_after(0)
    found = await store.get_revocation(told[0].serial_number)
    assert found is not None
    assert found.not_after == (await store.get_record(found.serial_number)).not_after  # type: ignore[union-attr]
    await store.close()


@pytest.mark.timeout(300)  # six starts of a service, beside other tests
def test_growth_runs_and_writes_its_table(tmp_path: Path) -> None:
    options = ["--sizes", "0,300", "--stores", "sqlite", "--rounds", "1", "--calls", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "growth", *options, "--directory", tmp_path, "--out", tmp_path],
        env={**os.environ, "PYTHONPATH": _python_path()},
        capture_output=True, text=True, check=False, timeout=290,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "growth.json").read_text())
    assert found["sizes"] == [0, 300]
    assert set(found["flat"]["sqlite"]) == {"start", "issue", "revoke", "list"}
    filled = found["medians_ms"]["sqlite"]["300"]
    assert filled["crl_entries"] == filled["revoked"] > 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["growth.json", "growth.md"]


def _python_path() -> str:
    more = [str(ROOT / "tests"), str(ROOT / "bench"), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(more)


def test_the_page_in_the_reference_is_made_of_its_numbers() -> None:
    reference = ROOT / "docs" / "reference"
    document: dict[str, Any] = json.loads((reference / "growth.json").read_text())
    assert (reference / "growth.md").read_text() == page(document)
    assert document["sizes"] == [0, 100_000, 1_000_000]
    for store in ("sqlite", "postgresql"):
        assert set(document["flat"][store]) == {"start", "issue", "revoke", "list"}
