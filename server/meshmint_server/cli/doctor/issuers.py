"""Issuers: certificates, chains and how long they last. Keys are the next module's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from meshmint_server.authority import examine_issuer
from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.words import duration_words, moment_words
from meshmint_server.cli.terminal import readable_subject
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow, IssuerState

__all__ = ["check_issuers"]

_REPLACE = (
    "Have the root sign a new one: 'meshmintd ca csr' with a new name, then 'meshmintd ca import'."
)


def check_issuers(
    rows: tuple[IssuerRow, ...], trust_domain: TrustDomain, now: datetime
) -> Iterator[Finding]:
    """Every issuer in the store, and that one of them signs."""
    active = [row.name for row in rows if row.state is IssuerState.ACTIVE]
    if not active:
        yield error(
            "issuers",
            "There is no active issuer: nothing can be issued.",
            "Make one with 'meshmintd ca csr' and 'meshmintd ca import'.",
        )
    elif len(active) > 1:
        yield error(
            "issuers",
            f"There are several active issuers: {', '.join(active)}.",
            "Import the one that shall sign once more; the others retire.",
        )
    for row in rows:
        yield from _issuer(row, trust_domain, now)


def _issuer(row: IssuerRow, trust_domain: TrustDomain, now: datetime) -> Iterator[Finding]:
    subject = f"issuer {row.name}"
    if row.state is IssuerState.GONE:
        return  # kept for its name alone
    if row.certificate is None:
        yield ok(subject, "It is pending: its CSR waits for the root's signature.")
        return
    found = examine_issuer(row, row.certificate, trust_domain, now)
    # A retired one signs no more; its faults are worth knowing, and harm nothing new.
    is_retired = row.state is IssuerState.RETIRED
    for fault in found.faults:
        yield (warning if is_retired else error)(subject, readable_subject(fault), _REPLACE)
    for text in found.warnings:
        yield warning(subject, readable_subject(text), "Use it for development only.")
    if found.expiry is None or found.expiry.is_over:
        return
    lasts = (
        f"{readable_subject(found.expiry.name)} expires at {moment_words(found.expiry.not_after)}, "
        f"in {duration_words(found.expiry.left)}."
    )
    if found.expiry.is_near and not is_retired:
        yield warning(subject, f"{lasts} No certificate outlives it.", _REPLACE)
    elif not found.faults:
        yield ok(
            subject, f"It is {row.state.value}, and its chain verifies up to its root. {lasts}"
        )
