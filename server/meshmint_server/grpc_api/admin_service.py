"""`meshmint.v1.AdminService`: translates, calls who administers it, translates back."""

from __future__ import annotations

from google.protobuf import empty_pb2
from meshmint.v1 import admin_service_pb2 as pb
from meshmint.v1 import role_pb2
from meshmint.v1.admin_service_pb2_grpc import AdminServiceServicer

from meshmint_server.grpc_api import issuer_messages, translate
from meshmint_server.grpc_api.edge import Call, Edge, rpc
from meshmint_server.issuance import Administration, IssuerAdministration, RoleChange

__all__ = ["AdminService"]

_CHANGES = {
    RoleChange.CREATED: pb.ROLE_CHANGE_CREATED,
    RoleChange.UPDATED: pb.ROLE_CHANGE_UPDATED,
    RoleChange.UNCHANGED: pb.ROLE_CHANGE_UNCHANGED,
}


class AdminService(AdminServiceServicer):
    """Roles, issuers and records, for operators."""

    def __init__(
        self, edge: Edge, administration: Administration, issuers: IssuerAdministration
    ) -> None:
        self.edge = edge
        self._administration = administration
        self._issuers = issuers

    @rpc("AdminService/PutRole")
    async def PutRole(self, request: pb.PutRoleRequest, call: Call) -> pb.PutRoleResponse:  # noqa: N802
        """Creates or replaces a role."""
        outcome = await self._administration.put_role(
            await call.authenticate(),
            call.origin,
            lambda: translate.role_document(request.role),
            validate_only=request.validate_only,
        )
        return pb.PutRoleResponse(
            role=translate.role_message(outcome.role),
            change=_CHANGES[outcome.change],
            warnings=outcome.warnings,
        )

    @rpc("AdminService/GetRole")
    async def GetRole(self, request: pb.GetRoleRequest, call: Call) -> role_pb2.Role:  # noqa: N802
        """One role."""
        return translate.role_message(
            await self._administration.get_role(
                await call.authenticate(), call.origin, request.name
            )
        )

    @rpc("AdminService/ListRoles")
    async def ListRoles(self, request: pb.ListRolesRequest, call: Call) -> pb.ListRolesResponse:  # noqa: N802
        """A page of roles."""
        page = await self._administration.list_roles(
            await call.authenticate(), call.origin, request.page_size, request.page_token
        )
        return pb.ListRolesResponse(
            roles=map(translate.role_message, page.items), next_page_token=page.next_page_token
        )

    @rpc("AdminService/DeleteRole")
    async def DeleteRole(self, request: pb.DeleteRoleRequest, call: Call) -> empty_pb2.Empty:  # noqa: N802
        """Deletes a role."""
        await self._administration.delete_role(
            await call.authenticate(),
            call.origin,
            request.name,
            allow_missing=request.allow_missing,
        )
        return empty_pb2.Empty()

    @rpc("AdminService/ListIssuers")
    async def ListIssuers(  # noqa: N802
        self, request: pb.ListIssuersRequest, call: Call
    ) -> pb.ListIssuersResponse:
        """A page of issuers."""
        page = await self._administration.list_issuers(
            await call.authenticate(), call.origin, request.page_size, request.page_token
        )
        return pb.ListIssuersResponse(
            issuers=map(issuer_messages.issuer_message, page.items),
            next_page_token=page.next_page_token,
        )

    @rpc("AdminService/GetIssuer")
    async def GetIssuer(self, request: pb.GetIssuerRequest, call: Call) -> pb.Issuer:  # noqa: N802
        """One issuer."""
        return issuer_messages.issuer_message(
            await self._administration.get_issuer(
                await call.authenticate(), call.origin, request.name
            )
        )

    @rpc("AdminService/GetRotation")
    async def GetRotation(  # noqa: N802
        self, request: pb.GetRotationRequest, call: Call
    ) -> pb.Rotation:
        """How far the rotation is."""
        return issuer_messages.rotation_message(
            await self._issuers.rotation(await call.authenticate(), call.origin)
        )

    @rpc("AdminService/PrepareIssuer")
    async def PrepareIssuer(  # noqa: N802
        self, request: pb.PrepareIssuerRequest, call: Call
    ) -> pb.PrepareIssuerResponse:
        """Makes an issuer that waits for its certificate."""
        row, csr = await self._issuers.prepare(
            await call.authenticate(),
            call.origin,
            name=request.name or None,
            algorithm=request.algorithm or None,
            common_name=request.common_name or None,
        )
        return pb.PrepareIssuerResponse(issuer=issuer_messages.issuer_message(row), csr=csr)

    @rpc("AdminService/ImportIssuer")
    async def ImportIssuer(self, request: pb.ImportIssuerRequest, call: Call) -> pb.Issuer:  # noqa: N802
        """Takes the certificate of an issuer."""
        return issuer_messages.issuer_message(
            await self._issuers.import_(
                await call.authenticate(),
                call.origin,
                name=request.name or None,
                certificates=request.certificates.encode(),
            )
        )

    @rpc("AdminService/ActivateIssuer")
    async def ActivateIssuer(self, request: pb.ActivateIssuerRequest, call: Call) -> pb.Issuer:  # noqa: N802
        """Has an issuer sign."""
        return issuer_messages.issuer_message(
            await self._issuers.activate(
                await call.authenticate(),
                call.origin,
                name=request.name or None,
                at_once=request.at_once,
            )
        )

    @rpc("AdminService/RemoveIssuer")
    async def RemoveIssuer(self, request: pb.RemoveIssuerRequest, call: Call) -> pb.Issuer:  # noqa: N802
        """Stops publishing an issuer."""
        return issuer_messages.issuer_message(
            await self._issuers.remove(
                await call.authenticate(),
                call.origin,
                name=request.name,
                at_once=request.at_once,
            )
        )

    @rpc("AdminService/ListRecords")
    async def ListRecords(  # noqa: N802
        self, request: pb.ListRecordsRequest, call: Call
    ) -> pb.ListRecordsResponse:
        """A page of records."""
        page = await self._administration.list_records(
            await call.authenticate(),
            call.origin,
            lambda: translate.record_filter(request.filter),
            request.page_size,
            request.page_token,
        )
        return pb.ListRecordsResponse(
            records=map(translate.record_message, page.items),
            next_page_token=page.next_page_token,
        )

    @rpc("AdminService/GetRecord")
    async def GetRecord(self, request: pb.GetRecordRequest, call: Call) -> pb.Record:  # noqa: N802
        """One record."""
        return translate.record_message(
            await self._administration.get_record(
                await call.authenticate(), call.origin, request.serial_number
            )
        )
