"""Statements on the trust bundles of other trust domains, each kept apart by its name."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, true, update
from sqlalchemy.ext.asyncio import AsyncConnection

from meshmint_server.store.configured import advance
from meshmint_server.store.rows import FederatedBundleRow, FetchFailureRow
from meshmint_server.store.schema import federated_bundles, fetch_failures, revisions

__all__ = [
    "delete_bundle",
    "fetch_bundles",
    "fetch_failures_of_all",
    "write_bundle",
    "write_failure",
]


async def write_bundle(
    connection: AsyncConnection, row: FederatedBundleRow, replaces: FederatedBundleRow | None
) -> bool:
    """Keeps a fetched bundle in the place of the one before; the failures before it are over.

    Returns:
        False, and nothing changed, if that is not there any more, or one is where none was.
    """
    await advance(connection, "federation")
    found = (
        await connection.execute(
            select(federated_bundles.c.sequence, federated_bundles.c.fetched_at).where(
                federated_bundles.c.trust_domain == row.trust_domain
            )
        )
    ).one_or_none()
    seen = None if replaces is None else (replaces.sequence, replaces.fetched_at)
    if seen != (None if found is None else tuple(found)):
        return False
    values = {
        "trust_domain": row.trust_domain,
        "document": row.document,
        "sequence": row.sequence,
        "fetched_at": row.fetched_at,
    }
    if found is None:
        await connection.execute(insert(federated_bundles).values(values))
    else:
        await connection.execute(
            update(federated_bundles)
            .where(federated_bundles.c.trust_domain == row.trust_domain)
            .values(values)
        )
    await _forget_failure(connection, row.trust_domain)
    return True


async def delete_bundle(connection: AsyncConnection, trust_domain: str) -> None:
    """Forgets the bundle of a trust domain that is not federated with any more."""
    await advance(connection, "federation")
    await connection.execute(
        delete(federated_bundles).where(federated_bundles.c.trust_domain == trust_domain)
    )
    await _forget_failure(connection, trust_domain)


async def write_failure(connection: AsyncConnection, row: FetchFailureRow) -> None:
    """Notes a failure in the place of the one before. For people: no revision counts it."""
    await _forget_failure(connection, row.trust_domain)
    await connection.execute(
        insert(fetch_failures).values(
            trust_domain=row.trust_domain, failed_at=row.failed_at, problem=row.problem
        )
    )


async def _forget_failure(connection: AsyncConnection, trust_domain: str) -> None:
    await connection.execute(
        delete(fetch_failures).where(fetch_failures.c.trust_domain == trust_domain)
    )


async def fetch_failures_of_all(connection: AsyncConnection) -> tuple[FetchFailureRow, ...]:
    """Every trust domain whose bundle could not be fetched the last time."""
    rows = await connection.execute(select(fetch_failures).order_by(fetch_failures.c.trust_domain))
    return tuple(FetchFailureRow(row.trust_domain, row.failed_at, row.problem) for row in rows)


async def fetch_bundles(
    connection: AsyncConnection,
) -> tuple[int, tuple[FederatedBundleRow, ...]]:
    """Every bundle, and their revision, as one statement sees them."""
    result = await connection.execute(
        select(revisions.c.value.label("revision"), federated_bundles)
        .select_from(revisions.outerjoin(federated_bundles, true()))
        .where(revisions.c.kind == "federation")
        .order_by(federated_bundles.c.trust_domain)
    )
    rows = result.all()
    return int(rows[0].revision), tuple(
        FederatedBundleRow(row.trust_domain, row.document, row.sequence, row.fetched_at)
        for row in rows
        if row.trust_domain is not None
    )
