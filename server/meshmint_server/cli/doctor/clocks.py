"""Clocks: this machine's, against the database's and against what has been signed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509

from meshmint_server.cli.doctor.finding import Finding, error, ok, warning
from meshmint_server.cli.doctor.words import duration_words, moment_words
from meshmint_server.store import IssuerRow, IssuerState

__all__ = ["check_clocks"]

_CLOCK = "clock"
_FIRST_YEAR: Final = 2026
_LAST_YEAR: Final = 2100
# Tokens are checked with ten seconds of leeway by default.
_NOTICEABLE: Final = timedelta(seconds=5)
_HARMFUL: Final = timedelta(seconds=60)
_ADVICE: Final = "Set the clock, and have it kept by NTP (chrony, systemd-timesyncd)."


def check_clocks(
    now: datetime, at_store: datetime | None, issuers: tuple[IssuerRow, ...] | None
) -> Iterator[Finding]:
    """Compares what there is to compare.

    Args:
        now: This machine's clock.
        at_store: The database's clock, read at about the same time.
        issuers: For the active one's not_before.
    """
    faults = [*_year(now), *_store(now, at_store), *_issuer(now, issuers or ())]
    yield from faults
    if not faults:
        beside = "" if at_store is None else ", and the database's agrees"
        yield ok(_CLOCK, f"This machine's clock says {moment_words(now)}{beside}.")


def _year(now: datetime) -> Iterator[Finding]:
    if not _FIRST_YEAR <= now.year <= _LAST_YEAR:
        yield error(_CLOCK, f"This machine's clock says {moment_words(now)}.", _ADVICE)


def _store(now: datetime, at_store: datetime | None) -> Iterator[Finding]:
    apart = timedelta(0) if at_store is None else abs(now - at_store)
    if apart > _NOTICEABLE:
        make = error if apart > _HARMFUL else warning
        yield make(
            _CLOCK,
            f"This machine's clock and the database's are {duration_words(apart)} apart.",
            _ADVICE,
        )


def _issuer(now: datetime, issuers: tuple[IssuerRow, ...]) -> Iterator[Finding]:
    for row in issuers:
        if row.state is not IssuerState.ACTIVE or row.certificate is None:
            continue
        try:
            begins = x509.load_der_x509_certificate(row.certificate).not_valid_before_utc
        except ValueError:
            continue  # said of the issuer
        if now < begins:
            yield error(
                _CLOCK,
                f"This machine's clock says {moment_words(now)}, and the active issuer {row.name} "
                f"was signed to be valid from {moment_words(begins)}.",
                _ADVICE,
            )
