"""What the next full CRL of a shard lists, at the cost of what has changed since the last.

The entries of a CRL stay encoded, in parts that cover one range of revocations each. A
part is read again only when an entry of it is to leave; all others are used as they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from meshmint_server.authority.crl_entries import encode_entries
from meshmint_server.store import CrlRow, Store

__all__ = ["Listing", "Part", "read_parts"]

_EVER: Final = datetime.fromtimestamp(0, UTC)
# Rows of a part: some milliseconds of the event loop to read.
_ROWS: Final = 500


class Part(NamedTuple):
    """Entries in DER.

    Attributes:
        after: The sequence behind which it begins.
        through: The sequence with which it ends.
        expires: When the first of its certificates expires.
        size: How many entries.
        der: See `encode_entries`.
    """

    after: int
    through: int
    expires: datetime
    size: int
    der: bytes


@dataclass(frozen=True, slots=True)
class Listing:
    """What one full CRL listed.

    Attributes:
        number: Of the CRL.
        expires_from: What had expired before that was left out.
        parts: In the order of sequences.
    """

    number: int
    expires_from: datetime
    parts: tuple[Part, ...]

    @classmethod
    async def next(
        cls,
        number: int,
        before: CrlRow | None,
        listed: Listing | None,
        *,
        store: Store,
        shard: tuple[str, int],
        through: int,
        now: datetime,
    ) -> Listing:
        """What is revoked and has not expired, and what no full CRL since its expiry has listed.

        RFC 5280 section 3.3: an entry leaves once it was on one full CRL that was made
        after the certificate had expired. If the clock was set back, so are those limits.

        Args:
            number: Of the CRL to be made.
            before: The last full CRL.
            listed: What that listed, if it was made here.
            store: Revocations.
            shard: Issuer and number.
            through: The last revocation to list.
            now: thisUpdate.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        if before is None:
            parts = [part async for part in read_parts(store, shard, 0, through)]
            return cls(number, _EVER, _joined(parts))
        expires_from, end = min(before.this_update, now), min(before.through, through)
        parts = []
        if (
            listed is not None
            and listed.number == before.number
            and listed.expires_from <= expires_from
            and end == before.through
        ):
            for part in listed.parts:
                if part.expires >= expires_from:
                    parts.append(part)
                else:
                    renewed = read_parts(store, shard, part.after, part.through, expires_from)
                    parts += [one async for one in renewed]
        else:
            parts += [part async for part in read_parts(store, shard, 0, end, expires_from)]
        parts += [part async for part in read_parts(store, shard, before.through, through)]
        return cls(number, expires_from, _joined(parts))


async def read_parts(
    store: Store, shard: tuple[str, int], after: int, through: int, expires_from: datetime = _EVER
) -> AsyncIterator[Part]:
    """Reads entries in parts, so that neither the store nor the event loop is held up.

    Args:
        store: Revocations.
        shard: Issuer and number.
        after: The sequence behind which to begin.
        through: The sequence to end with.
        expires_from: Leaves out what has expired before that.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    start: int | None = after
    while start is not None:
        revoked, end = await store.list_shard(
            *shard, after=start, through=through, expires_from=expires_from, limit=_ROWS
        )
        if revoked:
            yield Part(
                after=start,
                through=through if end is None else end,
                expires=min(one.not_after for one in revoked),
                size=len(revoked),
                der=await asyncio.to_thread(encode_entries, revoked),
            )
        start = end


def _joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts with small ones put together: each revocation may have come alone."""
    joined: list[Part] = []
    small: list[Part] = []
    for part in parts:
        if small and sum(one.size for one in small) + part.size > _ROWS:
            joined.append(_one_of(small))
            small = []
        small.append(part)
    if small:
        joined.append(_one_of(small))
    return tuple(joined)


def _one_of(parts: list[Part]) -> Part:
    return Part(
        after=parts[0].after,
        through=parts[-1].through,
        expires=min(part.expires for part in parts),
        size=sum(part.size for part in parts),
        der=b"".join(part.der for part in parts),
    )
