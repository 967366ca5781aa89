"""Rows for tests: whole and valid, with what a test cares about put in."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from meshmint_server.store.rows import IssuerRow, IssuerState, RecordRow

NOON = datetime(2031, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)
_COUNT = itertools.count()


def record_row(**changes: Any) -> RecordRow:
    """A record of a certificate that lives for an hour; each is made a second after the last."""
    created_at = changes.pop("created_at", NOON + timedelta(seconds=next(_COUNT)))
    row = RecordRow(
        serial_number=f"7{secrets.token_hex(19)}",
        certificate=b"\x30\x82" + secrets.token_bytes(20),
        issuer="mesh-1",
        role="web",
        authenticator="cluster",
        caller="system:serviceaccount:shop:cart",
        spiffe_id="spiffe://example.org/ns/shop/sa/cart",
        subject="CN=cart.shop",
        names=("URI:spiffe://example.org/ns/shop/sa/cart", "DNS:cart.shop"),
        not_before=created_at - timedelta(seconds=30),
        not_after=created_at + timedelta(hours=1),
        created_at=created_at,
        request_id=secrets.token_hex(16),
    )
    return replace(row, **changes)


def issuer_row(**changes: Any) -> IssuerRow:
    """A pending issuer."""
    row = IssuerRow(
        name="mesh-1",
        state=IssuerState.PENDING,
        key_uri="pkcs11:token=meshmint;object=mesh-1",
        public_key=b"\x30\x59public",
        certificate=None,
        chain=(),
        roots=(),
        created_at=NOON,
    )
    return replace(row, **changes)
