"""Federated trust bundles: whether each was fetched lately, and what hinders it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from meshmint_server.authority import FetchFailed, read_bundle_file
from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.words import duration_words
from meshmint_server.config import FederationSettings
from meshmint_server.spiffe import ReceivedBundle, parse_bundle
from meshmint_server.store import FederatedBundleRow, FetchFailureRow

__all__ = ["check_federation"]

_DEFAULT_HINT: Final = timedelta(minutes=5)
# For a service that was stopped for a while, and for pauses after a failure.
_PATIENCE: Final = timedelta(minutes=10)
_ADVICE: Final = (
    "A running service fetches it by itself. If none runs, start it: 'meshmintd serve'."
)
_AFTER_FAILURE: Final = (
    "A running service tries again by itself. If this does not pass, ask the other side; "
    "docs/guide/trust-bundle.md says what hinders a bundle."
)


def check_federation(
    federation: Sequence[FederationSettings],
    rows: Sequence[FederatedBundleRow],
    failures: Sequence[FetchFailureRow],
    now: datetime,
) -> Iterator[Finding]:
    """Every trust domain that is federated with. Endpoints are not asked."""
    kept = {row.trust_domain: row for row in rows}
    failed = {row.trust_domain: row for row in failures}
    for one in federation:
        name = str(one.trust_domain)
        yield from _bundle_of(one, kept.get(name), failed.get(name), now)


def _bundle_of(
    one: FederationSettings,
    row: FederatedBundleRow | None,
    failure: FetchFailureRow | None,
    now: datetime,
) -> Iterator[Finding]:
    subject = f"federation {one.trust_domain}"
    if row is None:
        if one.bundle is not None and one.endpoint_spiffe_id is not None:
            try:
                read_bundle_file(one.bundle, one.endpoint_spiffe_id.trust_domain)
            except FetchFailed as fault:
                yield error(subject, f"{fault}.", "Ask the other side for its bundle once more.")
                return
        message = "Its trust bundle has not been fetched yet."
        yield _with_failure(warning(subject, message, _ADVICE), failure, now)
        return
    try:
        bundle = parse_bundle(row.document, one.trust_domain)
    except ValueError as fault:
        message = f"Its trust bundle in the store is damaged: {fault}."
        yield _with_failure(warning(subject, message, _ADVICE), failure, now)
        return
    yield _with_failure(_freshness(subject, bundle, _age(row.fetched_at, now)), failure, now)


def _age(moment: datetime, now: datetime) -> timedelta:
    return max(now - moment, timedelta(0))


def _with_failure(finding: Finding, failure: FetchFailureRow | None, now: datetime) -> Finding:
    """The finding, and what came of the last attempt if that failed."""
    if failure is None:
        return finding
    ago = duration_words(_age(failure.failed_at, now))
    return warning(
        finding.subject,
        f"{finding.message} The last attempt, {ago} ago, failed: {failure.problem}.",
        _AFTER_FAILURE,
    )


def _freshness(subject: str, bundle: ReceivedBundle, age: timedelta) -> Finding:
    fetched = f"was fetched {duration_words(age)} ago"
    if age > 3 * min(bundle.refresh_hint or _DEFAULT_HINT, timedelta(days=1)) + _PATIENCE:
        return warning(subject, f"Its trust bundle {fetched}, and is used still.", _ADVICE)
    if not bundle.roots:
        return warning(
            subject,
            f"Its trust bundle {fetched} and has no root: nobody there is trusted.",
            "Ask the other side whether that is meant.",
        )
    return ok(subject, f"Its trust bundle {fetched}; roots: {len(bundle.roots)}.")
