"""The trust bundles of other trust domains: fetched by one, known to all, never merged.

The one who does the upkeep fetches them into the store; every worker reads them
there and hands each out by the name of its trust domain (SPIFFE Federation,
sections 4 and 5). A bundle that cannot be had anew stays as it was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType

import structlog

from meshmint_server import telemetry
from meshmint_server.authority.bundle_fetch import FetchFailed, fetch_over_spiffe, fetch_over_web
from meshmint_server.errors import StoreUnavailable, Unavailable
from meshmint_server.spiffe import (
    InvalidBundle,
    JwtKey,
    ReceivedBundle,
    SpiffeId,
    TrustBundle,
    TrustDomain,
    parse_bundle,
)
from meshmint_server.store import FederatedBundleRow, FetchFailureRow, Store

__all__ = ["BundleFetcher", "FederatedBundles", "Federation", "forget_removed", "read_bundle_file"]

_log = structlog.get_logger(__name__)

_DEFAULT_HINT = timedelta(minutes=5)  # Trust Domain and Bundle, section 4.1.3
_SHORTEST = timedelta(seconds=1)
_LONGEST = timedelta(days=1)
_FIRST_RETRY = 1.0
_LONGEST_RETRY = 300.0
_LARGEST_FILE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Federation:
    """One trust domain that is federated with (SPIFFE Federation, section 5.1).

    Attributes:
        trust_domain: Whose bundle it is.
        url: Where it is served.
        endpoint_spiffe_id: Who serves it, of profile ``https_spiffe``; None is
            ``https_web``.
        bundle_file: Of ``https_spiffe``: the bundle to verify the server with until
            one was fetched.
        ca_file: Of ``https_web``: PEM of the roots to trust instead of the system's.
    """

    trust_domain: TrustDomain
    url: str
    endpoint_spiffe_id: SpiffeId | None = None
    bundle_file: Path | None = None
    ca_file: Path | None = None


def read_bundle_file(path: Path, trust_domain: TrustDomain) -> ReceivedBundle:
    """A trust domain's bundle document in a file.

    Raises:
        FetchFailed: It cannot be read, or is none.
    """
    try:
        return parse_bundle(_read(path), trust_domain)
    except InvalidBundle as error:
        raise FetchFailed(f"the bundle in {path} cannot be used: {error}") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise FetchFailed(f"{path} cannot be read: {error.strerror}") from error


class BundleFetcher:
    """Keeps one trust domain's bundle in the store fresh. For whoever does the upkeep."""

    def __init__(
        self,
        federation: Federation,
        store: Store,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._federation = federation
        self._store = store
        self._clock = clock
        self._monotonic = asyncio.get_running_loop().time
        self._due = float("-inf")
        self._failures = 0
        self._complaint = ""

    async def keep_fresh(self) -> None:
        """Fetches the bundle if its time has come; a failure is logged, and tried again.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        if self._monotonic() < self._due:
            return
        name = str(self._federation.trust_domain)
        try:
            hint = await self._fetch()
        except FetchFailed as failure:
            self._failures += 1
            telemetry.BUNDLE_FETCHES.labels(name, "failed").inc()
            # Jitter, so that the many who lost the same endpoint do not come back as one.
            longest = min(_FIRST_RETRY * 2**self._failures, _LONGEST_RETRY)
            self._due = self._monotonic() + random.uniform(longest / 2, longest)  # noqa: S311
            if str(failure) != self._complaint:
                self._complaint = str(failure)
                _log.warning(
                    "a federated bundle could not be fetched; the one before stays",
                    trust_domain=name,
                    url=self._federation.url,
                    problem=self._complaint,
                )
            # For doctor, which is another process.
            await self._store.note_fetch_failure(FetchFailureRow(name, self._clock(), str(failure)))
            return
        if self._failures:
            _log.info("a federated bundle can be fetched again", trust_domain=name)
        self._failures, self._complaint = 0, ""
        telemetry.BUNDLE_FETCHES.labels(name, "fetched").inc()
        self._due = self._monotonic() + hint.total_seconds()

    async def _fetch(self) -> timedelta:
        """Fetches, checks and keeps the bundle; tells when to look again."""
        name = str(self._federation.trust_domain)
        _, known = await self._store.load_federated_bundles()
        document = await self._download(known)
        try:
            bundle = parse_bundle(document, self._federation.trust_domain)
        except InvalidBundle as error:
            raise FetchFailed(f"its answer is no trust bundle: {error}") from error
        before = _readable(known).get(self._federation.trust_domain)
        if before is not None:
            _refuse_backwards(bundle, before)
        row = FederatedBundleRow(name, document, bundle.sequence, self._clock())
        replaces = next((one for one in known if one.trust_domain == name), None)
        if not await self._store.put_federated_bundle(row, replaces=replaces):
            # Another replica was faster. Ours may be older than what it put: look again.
            _log.info("another worker has put a federated bundle meanwhile", trust_domain=name)
            return _SHORTEST
        if before is None or _contents(before) != _contents(bundle):
            _log.info(
                "a federated bundle has changed",
                trust_domain=name,
                sequence=bundle.sequence,
                roots=len(bundle.roots),
                jwt_keys=len(bundle.jwt_keys),
            )
        return min(max(bundle.refresh_hint or _DEFAULT_HINT, _SHORTEST), _LONGEST)

    async def _download(self, known: Sequence[FederatedBundleRow]) -> bytes:
        federation = self._federation
        if federation.endpoint_spiffe_id is None:
            ca = None
            if federation.ca_file is not None:
                ca = await asyncio.to_thread(_read, federation.ca_file)
            return await fetch_over_web(federation.url, ca)
        # Once fetched, a bundle that serves itself is verified with what it said last.
        server = federation.endpoint_spiffe_id.trust_domain
        kept = _readable(known).get(server)
        if kept is not None:
            roots = kept.roots
        elif federation.bundle_file is not None:
            first = await asyncio.to_thread(read_bundle_file, federation.bundle_file, server)
            roots = first.roots
        else:
            raise FetchFailed(f"there is no bundle of {server} yet to verify its server with")
        return await fetch_over_spiffe(federation.url, federation.endpoint_spiffe_id, roots)


def _refuse_backwards(bundle: ReceivedBundle, before: ReceivedBundle) -> None:
    """Section 4.1.2: an older bundle may trust again what was taken back since.

    And one number stands for one set of roots and keys: of two, nobody knows which is newer.
    """
    if before.sequence is None:
        return
    if bundle.sequence is None or bundle.sequence < before.sequence:
        raise FetchFailed(
            f"its bundle went backwards: spiffe_sequence was {before.sequence} and is "
            f"{'missing' if bundle.sequence is None else bundle.sequence}"
        )
    if bundle.sequence == before.sequence and _contents(bundle) != _contents(before):
        raise FetchFailed(
            f"its bundle has other roots or keys under the same spiffe_sequence, {bundle.sequence}"
        )


def _contents(bundle: ReceivedBundle) -> tuple[frozenset[bytes], frozenset[JwtKey]]:
    """What it says to trust, in whatever order."""
    return frozenset(bundle.roots), frozenset(bundle.jwt_keys)


async def forget_removed(store: Store, federations: Sequence[Federation]) -> None:
    """Takes the bundles out of the store that nobody federates with any more.

    Raises:
        StoreUnavailable: The database does not answer.
    """
    configured = {str(one.trust_domain) for one in federations}
    _, rows = await store.load_federated_bundles()
    there = {row.trust_domain for row in rows}
    there |= {failure.trust_domain for failure in await store.list_fetch_failures()}
    for name in sorted(there - configured):
        await store.delete_federated_bundle(name)
        _log.info("a federated bundle was forgotten", trust_domain=name)


class FederatedBundles:
    """The bundles as one worker sees them: a snapshot that follows the store."""

    def __init__(self, store: Store, federations: Sequence[Federation]) -> None:
        self._store = store
        self._names = frozenset(one.trust_domain for one in federations)
        self._revision = -1
        self._bundles: Mapping[TrustDomain, TrustBundle] = MappingProxyType({})
        self._changed = asyncio.Event()

    @property
    def trust_domains(self) -> tuple[TrustDomain, ...]:
        """Those that are federated with, whether fetched yet or not."""
        return tuple(sorted(self._names))

    @property
    def changed(self) -> asyncio.Event:
        """Is set at the next change of a bundle, and is then another event."""
        return self._changed

    def wake(self) -> None:
        """Sets the event, so that whoever waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()

    def get(self, trust_domain: TrustDomain) -> TrustBundle:
        """A bundle; the very same object while it stays the same.

        Raises:
            Unavailable: It was not fetched yet.
        """
        try:
            return self._bundles[trust_domain]
        except KeyError:
            raise Unavailable(
                f"The trust bundle of {trust_domain} was not fetched yet. Try again.",
                reason="BUNDLE_NOT_FETCHED",
            ) from None

    async def refresh(self) -> None:
        """Reads the bundles again if they have changed.

        Raises:
            StoreUnavailable: The database does not answer; the snapshot stays.
        """
        if not self._names or await self._store.federation_revision() == self._revision:
            return
        revision, rows = await self._store.load_federated_bundles()
        for row in rows:
            telemetry.BUNDLE_FETCHED.labels(row.trust_domain).set(row.fetched_at.timestamp())
        bundles = {
            trust_domain: _same_or_new(self._bundles.get(trust_domain), trust_domain, received)
            for trust_domain, received in _readable(rows).items()
            if trust_domain in self._names
        }
        self._bundles, self._revision = MappingProxyType(bundles), revision
        self.wake()

    async def follow(self, interval: float) -> None:
        """Refreshes for ever, every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                _log.warning("federated bundles could not be refreshed", reason=error.reason)


def _same_or_new(
    before: TrustBundle | None, trust_domain: TrustDomain, received: ReceivedBundle
) -> TrustBundle:
    """The bundle; the one before if nothing is new, so that no watcher is told of it."""
    bundle = TrustBundle(
        trust_domain,
        received.roots,
        received.sequence or 0,
        received.refresh_hint or _DEFAULT_HINT,
        received.jwt_keys,
    )
    return before if before is not None and before == bundle else bundle


def _readable(rows: Sequence[FederatedBundleRow]) -> dict[TrustDomain, ReceivedBundle]:
    """What was kept. A row that was damaged counts as none, and is fetched anew."""
    found: dict[TrustDomain, ReceivedBundle] = {}
    for row in rows:
        try:
            trust_domain = TrustDomain(row.trust_domain)
            found[trust_domain] = parse_bundle(row.document, trust_domain)
        except ValueError:
            _log.warning("a federated bundle in the store cannot be read", name=row.trust_domain)
    return found
