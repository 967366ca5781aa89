"""Clients for operators: roles, issuers and records. Thin on purpose.

Every call needs the credential of a caller that the server's configuration
names under ``admins``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypedDict, Unpack

from meshmint import admin_operations as operations
from meshmint import issuer_operations
from meshmint.admin_operations import Page, PutRoleResult, Record, RecordFilter
from meshmint.calls import AsyncCalls, Calls
from meshmint.issuer_operations import Issuer, PreparedIssuer, Rotation
from meshmint.retry import RetryPolicy
from meshmint.roles import RoleDocument
from meshmint.settings import Settings
from meshmint.tls import ClientCertificate, PemSource
from meshmint.tokens import TokenSource

__all__ = ["AdminClient", "AdminOptions", "AsyncAdminClient"]


class AdminOptions(TypedDict, total=False):
    """How to reach the server; as the arguments of Client."""

    token: TokenSource | None
    root_certificates: PemSource | None
    insecure: bool
    timeout: float
    retry: RetryPolicy | None
    client_certificate: ClientCertificate | None
    server_name: str | None
    options: Sequence[tuple[str, str | int]]


class AdminClient:
    """Manages roles and issuers, and looks at records. Use it as a context manager."""

    def __init__(self, target: str, **options: Unpack[AdminOptions]) -> None:
        """Checks the settings; the first call connects. Arguments as those of Client."""
        self._calls = Calls(_settings(target, options))

    def put_role(self, role: RoleDocument, *, validate_only: bool = False) -> PutRoleResult:
        """Creates a role or replaces it whole.

        Args:
            role: The role by its field names, spelled as in a YAML file.
            validate_only: Checks and compares, and changes nothing.

        Raises:
            InvalidArgument: A role that can never work, with every violation.
            MeshmintError: See meshmint.errors.
        """
        return self._calls.run(operations.put_role(role, validate_only))

    def get_role(self, name: str) -> RoleDocument:
        """Returns one role. Raises NotFound if there is none."""
        return self._calls.run(operations.get_role(name))

    def list_roles(self, *, page_size: int = 0, page_token: str = "") -> Page[RoleDocument]:
        """Returns a page of the roles, by name."""
        return self._calls.run(operations.list_roles(page_size, page_token))

    def delete_role(self, name: str, *, allow_missing: bool = False) -> None:
        """Deletes a role. Raises NotFound if there is none, unless allow_missing is set."""
        self._calls.run(operations.delete_role(name, allow_missing))

    def list_issuers(self, *, page_size: int = 0, page_token: str = "") -> Page[Issuer]:
        """Returns a page of the issuers, by name."""
        return self._calls.run(issuer_operations.list_issuers(page_size, page_token))

    def get_issuer(self, name: str) -> Issuer:
        """Returns one issuer. Raises NotFound if there is none."""
        return self._calls.run(issuer_operations.get_issuer(name))

    def get_rotation(self) -> Rotation:
        """Returns how far the succession of the active issuer is, and what comes next."""
        return self._calls.run(issuer_operations.get_rotation())

    def prepare_issuer(
        self, name: str = "", *, algorithm: str = "", common_name: str = ""
    ) -> PreparedIssuer:
        """Makes an issuer that waits for its certificate: a key where the server has them.

        Asked again for one that waits, or has not signed yet, it makes a CSR for the same key.

        Args:
            name: Its name; empty: the one that waits already, or one of the date.
            algorithm: Kind of key, such as ``ec-p256``; empty: as configured there.
            common_name: CN of the subject; empty: made of the name.
        """
        return self._calls.run(issuer_operations.prepare_issuer(name, algorithm, common_name))

    def import_issuer(self, certificates: str, *, name: str = "") -> Issuer:
        """Brings the certificate of an issuer, which is then next, or active if no other is.

        Args:
            certificates: The certificate, those above it and the root: PEM, in any order.
            name: The issuer; empty: found by its key.

        Raises:
            InvalidArgument: They do not fit, with every reason as a violation.
        """
        return self._calls.run(issuer_operations.import_issuer(certificates, name))

    def activate_issuer(self, name: str, *, at_once: bool = False) -> Issuer:
        """Has an issuer sign from now on, and the active one retire.

        Args:
            name: The next issuer (`Rotation.next`), or a retired one that signs again.
            at_once: Although not everybody can know its root yet, and even if it ends before
                the active one: for an emergency.

        Raises:
            FailedPrecondition: It must not sign, or not yet.
        """
        return self._calls.run(issuer_operations.activate_issuer(name, at_once))

    def remove_issuer(self, name: str, *, at_once: bool = False) -> Issuer:
        """Stops publishing an issuer: a retired one, or one that was never used.

        Args:
            name: The issuer.
            at_once: Even though certificates live that chain to it: they all stop to verify.

        Raises:
            FailedPrecondition: It signs, or certificates live that chain to it.
        """
        return self._calls.run(issuer_operations.remove_issuer(name, at_once))

    def list_records(
        self, *, page_size: int = 0, page_token: str = "", **only: Unpack[RecordFilter]
    ) -> Page[Record]:
        """Returns a page of the records that match, newest first, without certificates."""
        return self._calls.run(operations.list_records(page_size, page_token, only))

    def get_record(self, serial_number: str) -> Record:
        """Returns one record with its certificate. Raises NotFound if there is none."""
        return self._calls.run(operations.get_record(serial_number))

    def close(self) -> None:
        """Closes the connection. The client cannot be used after that."""
        self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncAdminClient:
    """The same as AdminClient, to be awaited."""

    def __init__(self, target: str, **options: Unpack[AdminOptions]) -> None:
        """Checks the settings; the first call connects. Arguments as those of Client."""
        self._calls = AsyncCalls(_settings(target, options))

    async def put_role(self, role: RoleDocument, *, validate_only: bool = False) -> PutRoleResult:
        """Creates a role or replaces it whole; see AdminClient.put_role."""
        return await self._calls.run(operations.put_role(role, validate_only))

    async def get_role(self, name: str) -> RoleDocument:
        """Returns one role. Raises NotFound if there is none."""
        return await self._calls.run(operations.get_role(name))

    async def list_roles(self, *, page_size: int = 0, page_token: str = "") -> Page[RoleDocument]:
        """Returns a page of the roles, by name."""
        return await self._calls.run(operations.list_roles(page_size, page_token))

    async def delete_role(self, name: str, *, allow_missing: bool = False) -> None:
        """Deletes a role. Raises NotFound if there is none, unless allow_missing is set."""
        await self._calls.run(operations.delete_role(name, allow_missing))

    async def list_issuers(self, *, page_size: int = 0, page_token: str = "") -> Page[Issuer]:
        """Returns a page of the issuers, by name."""
        return await self._calls.run(issuer_operations.list_issuers(page_size, page_token))

    async def get_issuer(self, name: str) -> Issuer:
        """Returns one issuer. Raises NotFound if there is none."""
        return await self._calls.run(issuer_operations.get_issuer(name))

    async def get_rotation(self) -> Rotation:
        """Returns how far the succession is; see AdminClient.get_rotation."""
        return await self._calls.run(issuer_operations.get_rotation())

    async def prepare_issuer(
        self, name: str = "", *, algorithm: str = "", common_name: str = ""
    ) -> PreparedIssuer:
        """Makes an issuer that waits for its certificate; see AdminClient.prepare_issuer."""
        return await self._calls.run(issuer_operations.prepare_issuer(name, algorithm, common_name))

    async def import_issuer(self, certificates: str, *, name: str = "") -> Issuer:
        """Brings the certificate of an issuer; see AdminClient.import_issuer."""
        return await self._calls.run(issuer_operations.import_issuer(certificates, name))

    async def activate_issuer(self, name: str, *, at_once: bool = False) -> Issuer:
        """Has an issuer sign from now on; see AdminClient.activate_issuer."""
        return await self._calls.run(issuer_operations.activate_issuer(name, at_once))

    async def remove_issuer(self, name: str, *, at_once: bool = False) -> Issuer:
        """Stops publishing an issuer; see AdminClient.remove_issuer."""
        return await self._calls.run(issuer_operations.remove_issuer(name, at_once))

    async def list_records(
        self, *, page_size: int = 0, page_token: str = "", **only: Unpack[RecordFilter]
    ) -> Page[Record]:
        """Returns a page of the records that match, newest first, without certificates."""
        return await self._calls.run(operations.list_records(page_size, page_token, only))

    async def get_record(self, serial_number: str) -> Record:
        """Returns one record with its certificate. Raises NotFound if there is none."""
        return await self._calls.run(operations.get_record(serial_number))

    async def close(self) -> None:
        """Closes the connection. The client cannot be used after that."""
        await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def _settings(target: str, options: AdminOptions) -> Settings:
    return Settings.of(
        target,
        token=options.get("token"),
        root_certificates=options.get("root_certificates"),
        insecure=options.get("insecure", False),
        timeout=options.get("timeout", 10.0),
        retry=options.get("retry"),
        client_certificate=options.get("client_certificate"),
        server_name=options.get("server_name"),
        options=options.get("options", ()),
    )
