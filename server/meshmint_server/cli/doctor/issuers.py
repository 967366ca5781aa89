"""Issuers: certificates, chains and how long they last. Keys are the next module's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from meshmint_server.authority import (
    Rotation,
    RotationRules,
    Term,
    decide,
    describe_rotation,
    examine_issuer,
)
from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.words import duration_words, moment_words
from meshmint_server.cli.terminal import readable_subject
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow, IssuerState

__all__ = ["check_issuers"]

_REPLACE = "Have the root sign a new one: begin with 'meshmintd ca rotate'."

_NEXT_STEP = "'meshmintd ca rotate' does the next step that is due."


def check_issuers(
    rows: tuple[IssuerRow, ...], trust_domain: TrustDomain, rules: RotationRules, now: datetime
) -> Iterator[Finding]:
    """Every issuer in the store, that one of them signs, and what its successor waits for."""
    active = [row.name for row in rows if row.state is IssuerState.ACTIVE]
    if not active:
        yield error(
            "issuers",
            "There is no active issuer: nothing can be issued.",
            "'meshmintd ca rotate' does the next step, and says what comes then.",
        )
    elif len(active) > 1:
        yield error(
            "issuers",
            f"There are several active issuers: {', '.join(active)}.",
            "Activate the next one with 'meshmintd ca rotate --activate'; the others retire.",
        )
    for row in rows:
        yield from _issuer(row, trust_domain, now)
    if active:
        yield from _rotation(decide(rows, now, rules), now)
        yield from _long_leaves(rows, rules, now)


def _rotation(rotation: Rotation, now: datetime) -> Iterator[Finding]:
    subject, words = "rotation", describe_rotation(rotation)
    is_due = rotation.due is None or rotation.due <= now
    if rotation.is_urgent:
        yield error(subject, words, _REPLACE if rotation.is_automatic else _NEXT_STEP)
    elif rotation.last_failure is not None or (is_due and not rotation.is_automatic):
        yield warning(subject, words, _NEXT_STEP)
    else:
        yield ok(subject, words)


def _long_leaves(
    rows: tuple[IssuerRow, ...], rules: RotationRules, now: datetime
) -> Iterator[Finding]:
    for row in rows:
        term = Term.of(row) if row.state is IssuerState.ACTIVE else None
        if term is None or now >= term.end:
            continue
        if rules.activate_at(term) > term.end - rules.longest_leaf:
            yield warning(
                "rotation",
                f"Certificates may live for {duration_words(rules.longest_leaf)} ('max_ttl'), and "
                f"the issuer '{row.name}' signs until {moment_words(rules.activate_at(term))}, "
                f"{duration_words(term.end - rules.activate_at(term))} before its end: towards "
                "then, long ones are refused.",
                "Shorten 'max_ttl', have issuers signed for longer, or set "
                "'rotation.activate_before'.",
            )


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
