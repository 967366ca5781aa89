"""The store: what the rest of the service sees of the database.

Every method raises StoreUnavailable when the database does not answer, and
None means that there is no such object; what that means is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from sqlalchemy import Connection

from meshmint_server.errors import StoreUnavailable
from meshmint_server.store import (
    configured,
    expired,
    federated,
    inspection,
    jwt_keys,
    replies,
    revocations,
    unnamed,
)
from meshmint_server.store.database import Database, RowRefused, TimeLimits, Work
from meshmint_server.store.leadership import Leadership, leadership_at
from meshmint_server.store.migrate import SchemaState, migrate, schema_state
from meshmint_server.store.postgres_writer import PostgresWriter
from meshmint_server.store.record_values import RecordWriter
from meshmint_server.store.recorder import Observer, Recorder
from meshmint_server.store.records import (
    RecordList,
    fetch_latest_expiry,
    fetch_record,
    normal_serial_number,
)
from meshmint_server.store.rows import (
    CrlKind,
    CrlRow,
    FederatedBundleRow,
    FetchFailureRow,
    IssuerRow,
    JwtKeyRow,
    KeptReply,
    Page,
    RecordFilter,
    RecordRow,
    RevocationRow,
    RevokedSerial,
    RoleRow,
)
from meshmint_server.store.schema import issuers, roles
from meshmint_server.store.sqlite_writer import SqliteWriter
from meshmint_server.store.url import PostgresUrl, SqliteUrl, parse_store_url

__all__ = ["Store"]

T = TypeVar("T")


class Store:
    """Records, roles and issuers in SQLite or PostgreSQL. Belongs to one event loop.

    Attributes:
        database: The way to the database, for this room and its tests.
    """

    def __init__(
        self,
        url: SqliteUrl | PostgresUrl,
        database: Database,
        *,
        max_waiting: int,
        observe: Observer | None,
    ) -> None:
        self._url = url
        self.database = database
        self._writer: RecordWriter = (
            SqliteWriter(url, database.limits)
            if isinstance(url, SqliteUrl)
            else PostgresWriter(url, database.limits)
        )
        self._replies = replies.ReplyLookup(self._writer.taken)
        self._recorder = Recorder(
            self._writer.write,
            max_waiting=max_waiting,
            time_limit=database.limits.transaction,
            observe=observe,
        )

    @classmethod
    def open(
        cls,
        url: str,
        *,
        limits: TimeLimits | None = None,
        max_waiting: int = 16_384,
        observe: Observer | None = None,
        as_it_is: bool = False,
    ) -> Store:
        """A store at `url`. Connects when first used; makes SQLite's file, mode 0600.

        Args:
            url: ``sqlite:////absolute/path.db`` or ``postgresql://user@host/database?…``.
            limits: How long the database may take.
            max_waiting: How many records may wait for their commit.
            observe: Told the size of each committed batch of records, and the seconds.
            as_it_is: Makes no file and changes no mode: for a look at what is there.

        Raises:
            InvalidStoreUrl: The URL cannot be used.
            StoreUnavailable: SQLite's file cannot be opened.
        """
        parsed = parse_store_url(url)
        database = Database(parsed, limits or TimeLimits(), as_it_is=as_it_is)
        return cls(parsed, database, max_waiting=max_waiting, observe=observe)

    async def migrate(self) -> None:
        """Brings the schema up to date. Safe from any number of processes at once."""
        await migrate(self.database)

    async def ping(self) -> None:
        """Returns if the database answers and has our schema."""
        await self.issuers_revision()

    async def schema_state(self) -> SchemaState:
        """How the schema stands to the one that this release knows; changes nothing."""
        return await schema_state(self.database)

    async def try_writing(self) -> None:
        """Returns if a writing transaction works; it is rolled back, and nothing stays of it."""
        await inspection.try_writing(self.database)

    async def prove_writing(self) -> None:
        """Returns if a transaction that wrote was committed; nothing stays of it."""
        await inspection.prove_writing(self.database)

    async def clock(self) -> datetime | None:
        """What time the database has; None for SQLite, which has this machine's."""
        return await inspection.read_clock(self.database)

    async def close(self) -> None:
        """Commits the records that wait, then closes every connection."""
        await self._recorder.close()
        await self._writer.close()
        await self.database.close()

    # Records

    @property
    def waiting(self) -> int:
        """Records that wait for their transaction."""
        return self._recorder.waiting

    async def record(self, row: RecordRow) -> bool:
        """Returns once `row` is durable. See `Recorder.record`.

        Returns:
            False, and nothing was recorded, if there is a reply with the tag of its reply.

        Raises:
            Overloaded: Too many records wait.
            StoreUnavailable: It was not recorded, or nobody can tell in time; with
                the reason RECORD_REFUSED if its serial number is taken.
            ValueError: The certificate expires before it was made.
        """
        if row.not_after <= row.created_at:
            # Lists rest on this order; no way leads here for such a certificate.
            raise ValueError("a certificate expires after it was made")
        return await self._recorder.record(row)

    async def find_reply(self, tag: bytes, now: datetime) -> KeptReply | None:
        """The reply with this tag, if it was kept and has not expired."""
        if not await self._replies.is_taken(tag):
            return None
        kept = await self.database.run(lambda connection: replies.fetch_reply(connection, tag))
        if kept is None or kept.reply.expires_at > now:
            return kept
        # Out of the way of the one that takes its place.
        await self._write(lambda connection: replies.delete_reply(connection, tag, now))
        return None

    async def delete_expired_replies(self, now: datetime, limit: int) -> int:
        """Deletes those of the oldest so many that have expired; returns how many they were."""
        return await self._write(lambda c: replies.delete_expired_replies(c, now, limit))

    async def get_record(self, serial_number: str) -> RecordRow | None:
        """The record with this serial number: hexadecimal, colons, hyphens and case aside.

        Raises:
            InvalidRequest: It is not hexadecimal.
        """
        plain = normal_serial_number(serial_number)
        return await self.database.run(lambda connection: fetch_record(connection, plain))

    async def look_up(self, serial_number: str) -> tuple[RecordRow | None, RevocationRow | None]:
        """The record of a certificate and its revocation, in one transaction; as `get_record`.

        Raises:
            InvalidRequest: It is not hexadecimal.
        """
        plain = normal_serial_number(serial_number)

        def work(connection: Connection) -> tuple[RecordRow | None, RevocationRow | None]:
            # In this order: of what is tidied meanwhile the record goes first, and one
            # without its revocation would pass for a good certificate.
            revocation = revocations.fetch_revocation(connection, plain)
            return fetch_record(connection, plain), revocation

        return await self.database.run(work)

    async def list_records(
        self, chosen: RecordFilter, page_size: int = 0, page_token: str = ""
    ) -> Page[RecordRow]:
        """A page of the records that fit, newest first, without their certificates.

        Raises:
            InvalidRequest: The page token is not one of this list.
        """
        return await self.database.run(RecordList(chosen, page_size, page_token).fetch)

    async def latest_expiry(self, issuer: str, *, besides_role: str) -> datetime | None:
        """When the last of the recorded certificates of an issuer expires; None without any.

        Those of one role, which should be few, do not count. Reads the issuer's part of an
        index from end to end: for rare questions.
        """
        return await self.database.run(lambda c: fetch_latest_expiry(c, issuer, besides_role))

    async def name_records(self, limit: int) -> bool:
        """Names so many records of before there were names; see `unnamed`. Whether any are left."""
        return await self._write(lambda connection: unnamed.name_records(connection, limit))

    # Roles

    async def put_role(self, row: RoleRow) -> None:
        """Creates a role or replaces it."""
        await self._write(lambda connection: configured.write_role(connection, row))

    async def get_role(self, name: str) -> RoleRow | None:
        """One role."""
        return await self.database.run(lambda connection: configured.fetch_role(connection, name))

    async def delete_role(self, name: str) -> bool:
        """Deletes a role; False if there was none."""
        return await self._write(lambda connection: configured.delete_role(connection, name))

    async def list_roles(self, page_size: int = 0, page_token: str = "") -> Page[RoleRow]:
        """A page of the roles, by name.

        Raises:
            InvalidRequest: The page token is not one of this list.
        """
        page = configured.NameList(roles, page_size, page_token)
        return await self.database.run(page.fetch_roles)

    async def load_roles(self) -> tuple[int, tuple[RoleRow, ...]]:
        """Every role, with the revision to compare `roles_revision` with."""
        return await self.database.run(configured.fetch_roles)

    async def roles_revision(self) -> int:
        """A number that grows with every change of a role."""
        return await self.database.run(lambda c: configured.fetch_revision(c, "roles"))

    # Issuers

    async def put_issuer(self, row: IssuerRow, *, at_revision: int | None = None) -> bool:
        """Creates an issuer or replaces it; if it is active, the active one before retires.

        Args:
            row: The issuer.
            at_revision: Writes only if no issuer has changed since, see `load_issuers`.

        Returns:
            False, and nothing changed, if some issuer has.
        """
        return await self._write(
            lambda connection: configured.write_issuer(connection, row, at_revision)
        )

    async def note_issuer_failure(self, name: str, failure: str | None) -> None:
        """Writes down why the last step with an issuer failed, for people; None: it did not."""
        await self._write(lambda connection: configured.note_failure(connection, name, failure))

    async def note_longest_leaf(self, lifetime: timedelta) -> None:
        """Writes down how long certificates of the active issuer may live, if longer than known.

        No revision counts it: it concerns only when the issuer may go.
        """
        microseconds = lifetime // timedelta(microseconds=1)
        await self._write(lambda c: configured.note_longest_leaf(c, microseconds))

    async def get_issuer(self, name: str) -> IssuerRow | None:
        """One issuer."""
        return await self.database.run(lambda connection: configured.fetch_issuer(connection, name))

    async def list_issuers(self, page_size: int = 0, page_token: str = "") -> Page[IssuerRow]:
        """A page of the issuers, by name.

        Raises:
            InvalidRequest: The page token is not one of this list.
        """
        page = configured.NameList(issuers, page_size, page_token)
        return await self.database.run(page.fetch_issuers)

    async def load_issuers(self) -> tuple[int, tuple[IssuerRow, ...]]:
        """Every issuer, with the revision to compare `issuers_revision` with."""
        return await self.database.run(configured.fetch_issuers)

    async def issuers_revision(self) -> int:
        """A number that grows with every change of an issuer, or of a key for JWT-SVIDs."""
        return await self.database.run(lambda c: configured.fetch_revision(c, "issuers"))

    # Keys for JWT-SVIDs

    async def put_jwt_key(self, row: JwtKeyRow, *, at_revision: int) -> bool:
        """Creates a key or replaces it; if it is active, the active one before retires.

        Returns:
            False, and nothing changed, if an issuer or a key has changed since `at_revision`.
        """
        return await self._write(
            lambda connection: jwt_keys.write_key(connection, row, at_revision)
        )

    async def load_jwt_keys(self) -> tuple[int, tuple[JwtKeyRow, ...]]:
        """Every key in the order of their making, with a revision as of `issuers_revision`."""
        return await self.database.run(jwt_keys.fetch_keys)

    # Revocations

    async def revoke(self, row: RevocationRow) -> RevocationRow:
        """Revokes a certificate: one row, durable on return, and nothing else is touched.

        Returns:
            What is on record: `row`, or the revocation that was first.
        """
        return await self._write(lambda connection: revocations.write_revocation(connection, row))

    async def get_revocation(self, serial_number: str) -> RevocationRow | None:
        """The revocation of the certificate with this serial number, as in `get_record`.

        Raises:
            InvalidRequest: It is not hexadecimal.
        """
        plain = normal_serial_number(serial_number)
        return await self.database.run(lambda c: revocations.fetch_revocation(c, plain))

    async def revocations_of(self, serial_numbers: Sequence[str]) -> dict[str, RevocationRow]:
        """Those of these certificates that are revoked, by serial number."""
        plain = list(serial_numbers)
        return await self.database.run(lambda c: revocations.fetch_revocations_of_serials(c, plain))

    async def latest_revocation(self, shard: tuple[str, int] | None = None) -> int:
        """The highest sequence of a revocation, of all or of one issuer's shard; 0 without any."""
        return await self.database.run(lambda c: revocations.fetch_latest_revocation(c, shard))

    async def revocations_after(
        self, sequence: int, limit: int = 10_000
    ) -> tuple[RevokedSerial, ...]:
        """What was revoked after `sequence`, in order, at most so many."""
        return await self.database.run(
            lambda c: revocations.fetch_revocations_after(c, sequence, limit)
        )

    async def list_shard(
        self,
        issuer: str,
        shard: int,
        *,
        after: int = 0,
        through: int,
        expires_from: datetime,
        limit: int = 10_000,
    ) -> tuple[tuple[RevokedSerial, ...], int | None]:
        """A part of what one CRL lists. See `revocations.fetch_shard`."""
        return await self.database.run(
            lambda connection: revocations.fetch_shard(
                connection,
                (issuer, shard),
                after=after,
                through=through,
                expires_from=expires_from,
                limit=limit,
            )
        )

    # CRLs

    async def put_crl(self, row: CrlRow, *, after: int) -> bool:
        """Publishes a CRL in the place of the one before.

        Args:
            row: The CRL; its number is higher than `after`.
            after: The highest number in its shard when the making of it began, of full
                and delta; 0 without any.

        Returns:
            False, and nothing changed, if another one was published meanwhile.
        """
        return await self._write(lambda connection: revocations.write_crl(connection, row, after))

    async def get_crl(self, issuer: str, shard: int, kind: CrlKind) -> CrlRow | None:
        """One CRL with its document."""
        return await self.database.run(lambda c: revocations.fetch_crl(c, issuer, shard, kind))

    async def list_crls(self) -> tuple[CrlRow, ...]:
        """Every CRL, without its document."""
        return await self.database.run(revocations.fetch_crl_states)

    async def delete_crl(self, issuer: str, shard: int, kind: CrlKind) -> None:
        """Takes one CRL back."""
        await self._write(lambda c: revocations.delete_crl(c, issuer, shard, kind))

    async def delete_crls(self, issuer: str) -> None:
        """Takes the CRLs of an issuer back."""
        await self._write(lambda connection: revocations.delete_crls(connection, issuer))

    async def crls_revision(self) -> int:
        """A number that grows with every change of a CRL."""
        return await self.database.run(lambda c: configured.fetch_revision(c, "crls"))

    # Bundles of other trust domains

    async def put_federated_bundle(
        self, row: FederatedBundleRow, *, replaces: FederatedBundleRow | None
    ) -> bool:
        """Keeps a fetched bundle in the place of the one that it was compared with.

        Returns:
            False, and nothing changed, if somebody has put or deleted one since.
        """
        return await self._write(
            lambda connection: federated.write_bundle(connection, row, replaces)
        )

    async def delete_federated_bundle(self, trust_domain: str) -> None:
        """Forgets the bundle of a trust domain."""
        await self._write(lambda connection: federated.delete_bundle(connection, trust_domain))

    async def load_federated_bundles(self) -> tuple[int, tuple[FederatedBundleRow, ...]]:
        """Every bundle, with the revision to compare `federation_revision` with."""
        return await self.database.run(federated.fetch_bundles)

    async def note_fetch_failure(self, row: FetchFailureRow) -> None:
        """Notes, for people, why a bundle could not be fetched, until it can be."""
        await self._write(lambda connection: federated.write_failure(connection, row))

    async def list_fetch_failures(self) -> tuple[FetchFailureRow, ...]:
        """Why bundles could not be fetched the last time; those that could are not there."""
        return await self.database.run(federated.fetch_failures_of_all)

    async def federation_revision(self) -> int:
        """A number that grows with every change of a federated bundle."""
        return await self.database.run(lambda c: configured.fetch_revision(c, "federation"))

    # Tidying

    async def expired_records(
        self, cutoff: datetime, after: tuple[datetime, int] | None, limit: int
    ) -> expired.ExpiredRecords:
        """A part of the records, and those of them that expired before `cutoff`."""
        return await self.database.run(
            lambda c: expired.fetch_expired_records(c, cutoff, after, limit)
        )

    async def delete_records(self, sequences: Sequence[int]) -> None:
        """Deletes records and their names, in one transaction. For those that have expired."""
        await self._write(lambda connection: expired.delete_records(connection, sequences))

    async def expired_revocations(
        self, cutoff: datetime, after: tuple[datetime, int] | None, limit: int
    ) -> tuple[expired.ExpiredRevocation, ...]:
        """A part of the revocations of certificates that expired before `cutoff`."""
        return await self.database.run(
            lambda c: expired.fetch_expired_revocations(c, cutoff, after, limit)
        )

    async def delete_revocations(self, sequences: Sequence[int]) -> None:
        """Deletes revocations. For those that no CRL has to list any more."""
        await self._write(lambda connection: expired.delete_revocations(connection, sequences))

    async def duty_done_at(self, name: str) -> datetime | None:
        """When a duty was last done, by whichever replica; None if never."""
        return await self.database.run(lambda connection: expired.fetch_duty(connection, name))

    async def note_duty(self, name: str, done_at: datetime) -> None:
        """Notes when a duty was done."""
        await self._write(lambda connection: expired.write_duty(connection, name, done_at))

    # Leadership

    def leadership(self, matter: str) -> Leadership:
        """A claim on being the one of all workers and replicas that does something."""
        return leadership_at(self._url, matter, time_limit=self.database.limits.connect)

    async def _write(self, work: Work[T]) -> T:
        try:
            return await self.database.run(work, writes=True)
        except RowRefused:
            # Two operators at once, and the other was first.
            raise StoreUnavailable("The change met another one. Try again.") from None
