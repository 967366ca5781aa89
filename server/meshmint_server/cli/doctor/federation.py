"""Federated trust bundles: whether each was fetched lately, or can be for the first time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from meshmint_server.authority import FetchFailed, read_bundle_file
from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.words import duration_words
from meshmint_server.config import FederationSettings
from meshmint_server.spiffe import ReceivedBundle, parse_bundle
from meshmint_server.store import FederatedBundleRow

__all__ = ["check_federation"]

_DEFAULT_HINT: Final = timedelta(minutes=5)
# For a service that was stopped for a while, and for pauses after a failure.
_PATIENCE: Final = timedelta(minutes=10)
_ADVICE: Final = (
    "A running service fetches it by itself. Its log says what hinders it: look for "
    "'a federated bundle could not be fetched'."
)


def check_federation(
    federation: Sequence[FederationSettings],
    rows: Sequence[FederatedBundleRow],
    now: datetime,
) -> Iterator[Finding]:
    """Every trust domain that is federated with. Endpoints are not asked."""
    kept = {row.trust_domain: row for row in rows}
    for one in federation:
        yield from _bundle_of(one, kept.get(str(one.trust_domain)), now)


def _bundle_of(
    one: FederationSettings, row: FederatedBundleRow | None, now: datetime
) -> Iterator[Finding]:
    subject = f"federation {one.trust_domain}"
    if row is None:
        if one.bundle is not None and one.endpoint_spiffe_id is not None:
            try:
                read_bundle_file(one.bundle, one.endpoint_spiffe_id.trust_domain)
            except FetchFailed as fault:
                yield error(subject, f"{fault}.", "Ask the other side for its bundle once more.")
                return
        yield warning(subject, "Its trust bundle has not been fetched yet.", _ADVICE)
        return
    try:
        bundle = parse_bundle(row.document, one.trust_domain)
    except ValueError as fault:
        yield warning(subject, f"Its trust bundle in the store is damaged: {fault}.", _ADVICE)
        return
    yield _freshness(subject, bundle, now - row.fetched_at)


def _freshness(subject: str, bundle: ReceivedBundle, age: timedelta) -> Finding:
    fetched = f"was fetched {duration_words(max(age, timedelta(0)))} ago"
    if age > 3 * min(bundle.refresh_hint or _DEFAULT_HINT, timedelta(days=1)) + _PATIENCE:
        return warning(subject, f"Its trust bundle {fetched}, and is used still.", _ADVICE)
    if not bundle.roots:
        return warning(
            subject,
            f"Its trust bundle {fetched} and has no root: nobody there is trusted.",
            "Ask the other side whether that is meant.",
        )
    return ok(subject, f"Its trust bundle {fetched}; roots: {len(bundle.roots)}.")
