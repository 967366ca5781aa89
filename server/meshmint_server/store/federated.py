"""Statements on the trust bundles of other trust domains, each kept apart by its name."""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert, select, true, update

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


def write_bundle(
    connection: Connection, row: FederatedBundleRow, replaces: FederatedBundleRow | None
) -> bool:
    """Keeps a fetched bundle in the place of the one before; the failures before it are over.

    Returns:
        False, and nothing changed, if that is not there any more, or one is where none was.
    """
    advance(connection, "federation")
    found = (
        connection.execute(
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
        connection.execute(insert(federated_bundles).values(values))
    else:
        connection.execute(
            update(federated_bundles)
            .where(federated_bundles.c.trust_domain == row.trust_domain)
            .values(values)
        )
    _forget_failure(connection, row.trust_domain)
    return True


def delete_bundle(connection: Connection, trust_domain: str) -> None:
    """Forgets the bundle of a trust domain that is not federated with any more."""
    advance(connection, "federation")
    connection.execute(
        delete(federated_bundles).where(federated_bundles.c.trust_domain == trust_domain)
    )
    _forget_failure(connection, trust_domain)


def write_failure(connection: Connection, row: FetchFailureRow) -> None:
    """Notes a failure in the place of the one before. For people: no revision counts it."""
    _forget_failure(connection, row.trust_domain)
    connection.execute(
        insert(fetch_failures).values(
            trust_domain=row.trust_domain, failed_at=row.failed_at, problem=row.problem
        )
    )


def _forget_failure(connection: Connection, trust_domain: str) -> None:
    connection.execute(delete(fetch_failures).where(fetch_failures.c.trust_domain == trust_domain))


def fetch_failures_of_all(connection: Connection) -> tuple[FetchFailureRow, ...]:
    """Every trust domain whose bundle could not be fetched the last time."""
    rows = connection.execute(select(fetch_failures).order_by(fetch_failures.c.trust_domain))
    return tuple(FetchFailureRow(row.trust_domain, row.failed_at, row.problem) for row in rows)


def fetch_bundles(
    connection: Connection,
) -> tuple[int, tuple[FederatedBundleRow, ...]]:
    """Every bundle, and their revision, as one statement sees them."""
    result = connection.execute(
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
