"""The CRLs as every worker hands them out: in memory, following the store.

A CRL is replaced whole, and never by one with a lower number.
"""

from __future__ import annotations

import asyncio
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import structlog

from meshmint_server import telemetry
from meshmint_server.errors import MeshmintError
from meshmint_server.store import CrlKind, CrlRow, Store

__all__ = ["CrlBook", "PublishedCrl"]

log = structlog.get_logger(__name__)

_LINE = 64  # RFC 7468 section 2


@dataclass(frozen=True)
class PublishedCrl:
    """One CRL, ready to hand out."""

    row: CrlRow

    @property
    def der(self) -> bytes:
        """As RFC 2585 has it."""
        return self.row.document

    @cached_property
    def pem(self) -> bytes:
        """As RFC 7468 has it."""
        text = binascii.b2a_base64(self.row.document, newline=False)
        lines = [text[start : start + _LINE] for start in range(0, len(text), _LINE)]
        return b"\n".join([b"-----BEGIN X509 CRL-----", *lines, b"-----END X509 CRL-----\n"])


CrlKey = tuple[str, int, CrlKind]


class CrlBook:
    """CRLs by issuer, shard and kind, read from the store whenever their revision changes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._revision = -1
        self._crls: Mapping[CrlKey, PublishedCrl] = MappingProxyType({})

    @property
    def is_loaded(self) -> bool:
        """Whether the store was read at all."""
        return self._revision >= 0

    def get(self, issuer: str, shard: int, kind: CrlKind) -> PublishedCrl | None:
        """One CRL; None if there is none."""
        return self._crls.get((issuer, shard, kind))

    async def refresh(self) -> None:
        """Reads the CRLs that have changed.

        Raises:
            StoreUnavailable: The database does not answer; what was known stays.
        """
        # Read first: what changes while we read is seen at the next look.
        revision = await self._store.crls_revision()
        if revision == self._revision:
            return
        crls: dict[CrlKey, PublishedCrl] = {}
        for state in await self._store.list_crls():
            key = (state.issuer, state.shard, state.kind)
            known = self._crls.get(key)
            if known is None or state.number > known.row.number:
                row = await self._store.get_crl(*key)
                known = None if row is None else PublishedCrl(row)
            if known is not None:
                crls[key] = known
        self._crls = MappingProxyType(crls)
        self._revision = revision
        self._measure()

    async def follow(self, interval: float) -> None:
        """Refreshes for ever, every ``interval`` seconds."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.refresh()
            except MeshmintError as error:
                log.warning("CRLs could not be refreshed", reason=error.reason)

    def _measure(self) -> None:
        by_label: dict[tuple[str, str], list[CrlRow]] = {}
        for crl in self._crls.values():
            by_label.setdefault((crl.row.issuer, crl.row.kind.value), []).append(crl.row)
        for label, rows in by_label.items():
            telemetry.CRL_THIS_UPDATE.labels(*label).set(
                min(row.this_update for row in rows).timestamp()
            )
            telemetry.CRL_NEXT_UPDATE.labels(*label).set(
                min(row.next_update for row in rows).timestamp()
            )
            telemetry.CRL_ENTRIES.labels(*label).set(sum(row.entries for row in rows))
