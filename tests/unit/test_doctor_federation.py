"""What doctor says of the bundles of other trust domains."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from meshmint_server.cli.doctor.federation import check_federation
from meshmint_server.cli.doctor.finding import Finding, Level
from meshmint_server.config import FederationSettings
from meshmint_server.spiffe import TrustBundle, TrustDomain
from meshmint_server.store import FederatedBundleRow, FetchFailureRow
from support.pki import make_root

NOW = datetime(2026, 11, 1, tzinfo=UTC)
ROOT = make_root().certificate.public_bytes(Encoding.DER)
FULL = TrustBundle(TrustDomain("other.example"), (ROOT,), 1, timedelta(minutes=5)).document


def check(
    path: Path, document: bytes | None, age: timedelta = timedelta(0), problem: str = ""
) -> Finding:
    settings = FederationSettings.model_validate(
        {
            "trust_domain": "other.example",
            "url": "https://bundles.other.example/",
            "profile": "https_spiffe",
            "endpoint_spiffe_id": "spiffe://other.example/bundle",
            "bundle": path,
        }
    )
    rows = []
    if document is not None:
        rows.append(FederatedBundleRow("other.example", document, None, NOW - age))
    failures = [FetchFailureRow("other.example", NOW - timedelta(minutes=3), problem)]
    (finding,) = check_federation([settings], rows, failures if problem else [], NOW)
    assert finding.subject == "federation other.example"
    return finding


@pytest.mark.parametrize(
    ("document", "age", "level", "message"),
    [
        (FULL, timedelta(minutes=4), Level.OK, "4 minutes ago; roots: 1"),
        (FULL, timedelta(hours=3), Level.WARNING, "3 hours ago, and is used still"),
        (b'{"keys": []}', timedelta(0), Level.WARNING, "no root"),
        (b"{}", timedelta(0), Level.WARNING, "damaged"),
    ],
)
def test_age_and_content_are_told(
    tmp_path: Path, document: bytes, age: timedelta, level: Level, message: str
) -> None:
    found = check(tmp_path / "bundle.json", document, age)

    assert (found.level, message in found.message) == (level, True), found


def test_before_the_first_fetch_the_first_bundle_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "bundle.json"
    assert check(path, None).level is Level.ERROR
    path.write_bytes(b"<html>")
    assert check(path, None).level is Level.ERROR
    path.write_bytes(FULL)
    assert check(path, None).level is Level.WARNING


@pytest.mark.parametrize("document", [FULL, b"{}", None])
def test_the_last_failure_is_told_whatever_there_is(tmp_path: Path, document: bytes | None) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(FULL)

    found = check(path, document, problem="it cannot be reached")

    assert found.level is Level.WARNING
    assert "The last attempt, 3 minutes ago, failed: it cannot be reached." in found.message
