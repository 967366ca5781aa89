"""The store: what the rest of the service sees of the database.

Every method raises StoreUnavailable when the database does not answer, and
None means that there is no such object; what that means is the caller's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

from meshmint_server.errors import StoreUnavailable
from meshmint_server.store import configured, inspection
from meshmint_server.store.database import Database, RowRefused, TimeLimits, Work
from meshmint_server.store.migrate import SchemaState, migrate, schema_state
from meshmint_server.store.recorder import Observer, Recorder
from meshmint_server.store.records import (
    RecordList,
    fetch_record,
    insert_records,
    normal_serial_number,
)
from meshmint_server.store.rows import (
    IssuerRow,
    IssuerState,
    Page,
    RecordFilter,
    RecordRow,
    RoleRow,
)
from meshmint_server.store.schema import issuers, roles
from meshmint_server.store.url import parse_store_url

__all__ = ["Store"]

T = TypeVar("T")


class Store:
    """Records, roles and issuers in SQLite or PostgreSQL. Belongs to one event loop.

    Attributes:
        database: The way to the database, for this room and its tests.
    """

    def __init__(self, database: Database, *, max_waiting: int, observe: Observer | None) -> None:
        self.database = database
        self._recorder = Recorder(
            self._commit,
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
        database = Database(parse_store_url(url), limits or TimeLimits(), as_it_is=as_it_is)
        return cls(database, max_waiting=max_waiting, observe=observe)

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

    async def clock(self) -> datetime | None:
        """What time the database has; None for SQLite, which has this machine's."""
        return await inspection.read_clock(self.database)

    async def close(self) -> None:
        """Commits the records that wait, then closes every connection."""
        await self._recorder.close()
        await self.database.close()

    # Records

    @property
    def waiting(self) -> int:
        """Records that wait for their transaction."""
        return self._recorder.waiting

    async def record(self, row: RecordRow) -> None:
        """Returns once `row` is durable. See `Recorder.record`.

        Raises:
            Overloaded: Too many records wait.
            StoreUnavailable: It was not recorded, or nobody can tell in time; with
                the reason RECORD_REFUSED if its serial number is taken.
            ValueError: The certificate expires before it was made.
        """
        if row.not_after <= row.created_at:
            # Lists rest on this order; no way leads here for such a certificate.
            raise ValueError("a certificate expires after it was made")
        await self._recorder.record(row)

    async def _commit(self, rows: Sequence[RecordRow]) -> None:
        await self.database.run(lambda connection: insert_records(connection, rows), writes=True)

    async def get_record(self, serial_number: str) -> RecordRow | None:
        """The record with this serial number: hexadecimal, colons, hyphens and case aside.

        Raises:
            InvalidRequest: It is not hexadecimal.
        """
        plain = normal_serial_number(serial_number)
        return await self.database.run(lambda connection: fetch_record(connection, plain))

    async def list_records(
        self, chosen: RecordFilter, page_size: int = 0, page_token: str = ""
    ) -> Page[RecordRow]:
        """A page of the records that fit, newest first, without their certificates.

        Raises:
            InvalidRequest: The page token is not one of this list.
        """
        return await self.database.run(RecordList(chosen, page_size, page_token).fetch)

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

    async def put_issuer(self, row: IssuerRow) -> None:
        """Creates an issuer or replaces it; if it is active, the active one before retires."""
        if row.state is IssuerState.ACTIVE:
            await self._write(lambda connection: configured.activate_issuer(connection, row))
        else:
            await self._write(lambda connection: configured.write_issuer(connection, row))

    async def add_issuer(self, row: IssuerRow) -> bool:
        """Creates an issuer; False, and nothing changed, if the name is taken."""
        return await self._write(lambda connection: configured.add_issuer(connection, row))

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
        """A number that grows with every change of an issuer."""
        return await self.database.run(lambda c: configured.fetch_revision(c, "issuers"))

    async def _write(self, work: Work[T]) -> T:
        try:
            return await self.database.run(work, writes=True)
        except RowRefused:
            # Two operators at once, and the other was first.
            raise StoreUnavailable("The change met another one. Try again.") from None
