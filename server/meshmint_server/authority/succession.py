"""What may be done with issuers: prepare, import, activate, remove; and how far they are.

Commands, AdminService and the service itself all come through here, so that one set
of rules holds for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime

from cryptography import x509

from meshmint_server.authority.ceremony import create_csr, import_chain
from meshmint_server.authority.locations import Locations
from meshmint_server.authority.ocsp import RESPONDER_ROLE
from meshmint_server.authority.rotation import Rotation, RotationRules, decide
from meshmint_server.authority.states import activated, changed_meanwhile, gone
from meshmint_server.authority.steadiness import agreed_time
from meshmint_server.errors import NotFound, PreconditionFailed
from meshmint_server.keys import KeyAlgorithmName, Keys, key_algorithm_of, load_public_key
from meshmint_server.spiffe import TrustDomain
from meshmint_server.store import IssuerRow, IssuerState, Store

__all__ = ["Succession"]


class Succession:
    """The issuers of one trust domain, and who signs after whom.

    Args:
        store: Where issuers are kept.
        keyring: Where their keys are.
        trust_domain: Whose SPIFFE IDs they sign.
        rules: The thresholds.
        algorithm: Kind of key of an issuer, where nobody says another.
        clock: The present.
        crl_shards: Into how many the CRLs of issuers made from now on are split.
        crl_url: Base URL of the distribution points of CRLs that are split.
        root_locations: What CSRs of issuers ask the root to name.
    """

    def __init__(
        self,
        store: Store,
        keyring: Keys,
        *,
        trust_domain: TrustDomain,
        rules: RotationRules,
        algorithm: KeyAlgorithmName,
        clock: Callable[[], datetime],
        crl_shards: int = 1,
        crl_url: str | None = None,
        root_locations: Locations | None = None,
    ) -> None:
        self._store = store
        self._keyring = keyring
        self._trust_domain = trust_domain
        self._rules = rules
        self._algorithm = algorithm
        self._clock = clock
        self._crl_shards = crl_shards
        self._crl_url = crl_url
        self._root_locations = root_locations

    async def rotation(self) -> Rotation:
        """How far the rotation is.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        _, rows = await self._store.load_issuers()
        return decide(rows, self._clock(), self._rules)

    async def note_longest_leaf(self) -> None:
        """Has the active issuer stay long enough for what is signed here without a record.

        Every worker does so before it signs, and again when another issuer is active.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        _, rows = await self._store.load_issuers()
        longest = self._rules.longest_leaf
        for row in rows:
            known = row.longest_leaf
            if row.state is IssuerState.ACTIVE and (known is None or known < longest):
                await self._store.note_longest_leaf(longest)

    async def prepare(
        self,
        name: str | None = None,
        *,
        algorithm: KeyAlgorithmName | str | None = None,
        common_name: str | None = None,
        subject: x509.Name | None = None,
        at_revision: int | None = None,
    ) -> tuple[IssuerRow, str]:
        """Makes an issuer that waits for its certificate, and its CSR; see `create_csr`.

        Args:
            name: Its name; None: that of the issuer that waits already, or one of the date.
            algorithm: Kind of key; None: that of the key that it has, or as configured.
            common_name: CN of the subject.
            subject: The whole subject instead.
            at_revision: Does so only if no issuer has changed since.
        """
        now = self._clock()
        _, rows = await self._store.load_issuers()
        if name is None:
            waiting = _waiting(rows)
            name = _name_of_date(now, rows) if waiting is None else waiting.name
        present = next((row for row in rows if row.name == name and row.has_key), None)
        if present is not None and algorithm is None:
            algorithm = key_algorithm_of(load_public_key(present.public_key))
        return await create_csr(
            self._store,
            self._keyring,
            name=name,
            algorithm=algorithm or self._algorithm,
            trust_domain=self._trust_domain,
            now=now,
            common_name=common_name,
            subject=subject,
            crl_shards=self._crl_shards,
            crl_url=self._crl_url,
            locations=self._root_locations,
            at_revision=at_revision,
        )

    async def import_(
        self,
        material: Iterable[bytes],
        *,
        name: str | None = None,
        activate: bool | None = None,
        at_once: bool = False,
    ) -> IssuerRow:
        """Takes an issuer's certificate with its chain and root; see `import_chain`."""
        return await import_chain(
            self._store,
            self._keyring,
            material,
            now=await agreed_time(self._store, self._clock()),
            trust_domain=self._trust_domain,
            rules=self._rules,
            name=name,
            activate=activate,
            at_once=at_once,
        )

    async def activate(
        self, name: str | None = None, *, at_once: bool = False, at_revision: int | None = None
    ) -> IssuerRow:
        """Has an issuer sign from now on; the active one retires, in the same transaction.

        Args:
            name: The issuer; None: the next one, if there is just one.
            at_once: See `activated`.
            at_revision: Does so only if no issuer has changed since.

        Raises:
            NotFound: There is no such issuer.
            PreconditionFailed: It must not sign, or not yet.
            KeyUnavailable: Its key does not sign.
            StoreUnavailable: The database does not answer, or the issuers have just changed.
        """
        revision, rows = await self._load(at_revision)
        row = _only_next(rows) if name is None else _named(rows, name)
        if row.state is IssuerState.ACTIVE:
            return row
        if row.state not in (IssuerState.NEXT, IssuerState.RETIRED):
            raise PreconditionFailed(
                f"The issuer '{row.name}' is {row.state.value}. Only one that is published can "
                "become active: the next one, or a retired one once more.",
                reason="ISSUER_NOT_NEXT",
            )
        row = activated(
            row, rows, await agreed_time(self._store, self._clock()), self._rules, at_once=at_once
        )
        # A key is handed out only after it has signed: an issuer that cannot must not take over.
        await self._keyring.open(row.key_uri, row.public_key)
        if not await self._store.put_issuer(row, at_revision=revision):
            raise changed_meanwhile()
        return row

    async def latest_leaf(self, name: str) -> datetime | None:
        """When the last recorded certificate of an issuer expires; its responder's do not count.

        Raises:
            StoreUnavailable: The database does not answer.
        """
        return await self._store.latest_expiry(name, besides_role=RESPONDER_ROLE)

    async def remove(
        self, name: str, *, at_once: bool = False, at_revision: int | None = None
    ) -> IssuerRow:
        """Stops publishing an issuer.

        Args:
            name: The issuer.
            at_once: See `gone`.
            at_revision: Does so only if no issuer has changed since.

        Raises:
            NotFound: There is no such issuer.
            PreconditionFailed: It signs, or certificates live that chain to it.
            StoreUnavailable: The database does not answer, or the issuers have just changed.
        """
        revision, rows = await self._load(at_revision)
        row = _named(rows, name)
        if row.state is IssuerState.GONE:
            return row
        latest = None
        if row.retired_at is not None:
            # Responders answer for it until it goes, and so are no reason to stay.
            latest = await self.latest_leaf(name)
        row = gone(
            row, latest, await agreed_time(self._store, self._clock()), self._rules, at_once=at_once
        )
        if not await self._store.put_issuer(row, at_revision=revision):
            raise changed_meanwhile()
        return row

    async def _load(self, at_revision: int | None) -> tuple[int, tuple[IssuerRow, ...]]:
        revision, rows = await self._store.load_issuers()
        if at_revision not in (None, revision):
            raise changed_meanwhile()
        return revision, rows


def _named(rows: Iterable[IssuerRow], name: str) -> IssuerRow:
    for row in rows:
        if row.name == name:
            return row
    raise NotFound(f"There is no issuer {name!r}. 'meshmintd ca show' and ListIssuers list them.")


def _only_next(rows: Iterable[IssuerRow]) -> IssuerRow:
    found = [row for row in rows if row.state is IssuerState.NEXT]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(row.name for row in found)
        raise PreconditionFailed(
            f"Several issuers are next: {names}. Name one.", reason="ISSUER_AMBIGUOUS"
        )
    raise PreconditionFailed(
        "There is no next issuer. 'meshmintd ca rotate' says what comes before.",
        reason="ISSUER_NOT_NEXT",
    )


def _waiting(rows: Iterable[IssuerRow]) -> IssuerRow | None:
    waiting = [row for row in rows if row.state is IssuerState.PENDING]
    return max(waiting, key=lambda row: row.created_at, default=None)


def _name_of_date(now: datetime, rows: Sequence[IssuerRow]) -> str:
    taken = {row.name for row in rows}
    name = base = f"issuer-{now:%Y%m%d}"
    number = 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name
