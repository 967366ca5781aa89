"""CRLs: whether every published issuer has fresh ones, where its certificates say they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from meshmint_server.cli.doctor.finding import Finding, ok, warning
from meshmint_server.cli.doctor.words import moment_words
from meshmint_server.config import Config
from meshmint_server.store import CrlKind, CrlRow, IssuerRow

__all__ = ["check_crls"]

# For a service that is just being started, and a key that is away for a moment.
_PATIENCE: Final = timedelta(minutes=10)
_ADVICE: Final = (
    "A running service makes it by itself. Its log says what hinders it: most often the issuer's "
    "key does not answer."
)


def check_crls(
    issuers: Sequence[IssuerRow], crls: Sequence[CrlRow], config: Config, now: datetime
) -> Iterator[Finding]:
    """Every published issuer's."""
    for issuer in issuers:
        if issuer.state.is_published:
            full = [c for c in crls if c.issuer == issuer.name and c.kind is CrlKind.FULL]
            yield from _crls_of(issuer, full, config, now)


def _crls_of(
    issuer: IssuerRow, full: Sequence[CrlRow], config: Config, now: datetime
) -> Iterator[Finding]:
    subject = f"crl of {issuer.name}"
    if issuer.crl_url is not None and issuer.crl_url != config.publication.url:
        yield warning(
            subject,
            f"Its certificates name CRLs under {issuer.crl_url}, for life; 'publication.url' is "
            f"{config.publication.url or 'not set'}.",
            "See that both lead to the HTTP port until its last certificate has expired.",
        )
    if len(full) < issuer.crl_shards:
        is_new = issuer.published_at is not None and now - issuer.published_at < _PATIENCE
        if is_new:
            yield ok(subject, "There is none yet: a running service makes it.")
        else:
            missing = issuer.crl_shards - len(full)
            yield warning(subject, f"Missing: {missing} of {issuer.crl_shards}.", _ADVICE)
        return
    first = min(full, key=lambda crl: crl.next_update)
    oldest = min(full, key=lambda crl: crl.this_update)
    if first.next_update <= now:
        yield warning(
            subject,
            f"It expired at {moment_words(first.next_update)}. Verifiers that ask for a CRL refuse "
            "every certificate of this issuer.",
            _ADVICE,
        )
    elif oldest.this_update + config.crl.interval + _PATIENCE < now:
        yield warning(
            subject,
            f"It is of {moment_words(oldest.this_update)}, and a new one is overdue. It expires at "
            f"{moment_words(first.next_update)}.",
            _ADVICE,
        )
    else:
        yield ok(subject, f"It is fresh, and expires at {moment_words(first.next_update)}.")
