"""The calls of AdminService on roles and records as values, and their results. No I/O in here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, TypedDict, TypeVar

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from meshmint.operations import Operation, moment
from meshmint.requests import timestamp
from meshmint.revocation import RevocationReason, reason_of
from meshmint.roles import RoleDocument, role_document, role_message
from meshmint.v1 import admin_service_pb2 as pb
from meshmint.v1 import role_pb2

__all__ = ["Page", "PutRoleResult", "Record", "RecordFilter"]

_Result = TypeVar("_Result")
_Item = TypeVar("_Item")

RoleChange = Literal["created", "updated", "unchanged"]

_SERVICE = "/meshmint.v1.AdminService/"


@dataclass(frozen=True, slots=True)
class Page(Generic[_Item]):
    """A page of a list.

    Attributes:
        items: What is on it.
        next_page_token: For the next page; empty on the last one.
    """

    items: tuple[_Item, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class PutRoleResult:
    """What became of a role that was put.

    Attributes:
        role: The role as it is now, or would be.
        change: ``created``, ``updated`` or ``unchanged``.
        warnings: What an operator should know.
    """

    role: RoleDocument
    change: RoleChange
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of one issued certificate.

    Attributes:
        serial_number: Lower-case hexadecimal.
        certificate_pem: The certificate; empty in lists.
        issuer: Name of the issuer.
        role: Name of the role.
        authenticator: Name of the authenticator that vouched for the caller.
        caller: The caller, as its authenticator names it.
        spiffe_id: The SPIFFE ID, or None.
        subject: Subject in RFC 4514 form.
        names: Every SAN, as ``DNS:…``, ``IP:…``, ``URI:…``, ``email:…``.
        not_before: Start of the validity, UTC.
        not_after: End of the validity, UTC.
        create_time: When it was recorded, UTC.
        request_id: Id of the RPC, as it stands in the log.
        revocation_time: Since when it is revoked, UTC; None if it is not.
        revocation_reason: Why it is revoked; None if it is not.
    """

    serial_number: str
    certificate_pem: str = field(repr=False)
    issuer: str
    role: str
    authenticator: str
    caller: str
    spiffe_id: str | None
    subject: str
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    create_time: datetime
    request_id: str
    revocation_time: datetime | None
    revocation_reason: RevocationReason | None


class RecordFilter(TypedDict, total=False):
    """Which records to list; all that is given must match, exactly.

    Attributes:
        role: Name of the role.
        caller: The caller, as its authenticator names it.
        authenticator: Name of the authenticator.
        spiffe_id: The SPIFFE ID.
        issuer: Name of the issuer.
        name: One of its names, whole and without the type in front (``web.example.org``,
            ``10.0.0.1``), or the common name; upper and lower case are the same.
        created_from: Recorded at this time or later.
        created_before: Recorded before this time.
        expires_from: Expires at this time or later.
        expires_before: Expires before this time.
    """

    role: str
    caller: str
    authenticator: str
    spiffe_id: str
    issuer: str
    name: str
    created_from: datetime
    created_before: datetime
    expires_from: datetime
    expires_before: datetime


def admin_operation(
    name: str,
    request: Message,
    answer: Callable[[bytes], Any],
    result: Callable[[Any], _Result],
) -> Operation[_Result]:
    return Operation(_SERVICE + name, request, answer, result)


def put_role(role: RoleDocument, validate_only: bool) -> Operation[PutRoleResult]:
    changes: dict[int, RoleChange] = {
        pb.ROLE_CHANGE_CREATED: "created",
        pb.ROLE_CHANGE_UPDATED: "updated",
        pb.ROLE_CHANGE_UNCHANGED: "unchanged",
    }

    def result(answer: pb.PutRoleResponse) -> PutRoleResult:
        change = changes.get(answer.change, "updated")
        return PutRoleResult(role_document(answer.role), change, tuple(answer.warnings))

    return admin_operation(
        "PutRole",
        pb.PutRoleRequest(role=role_message(role), validate_only=validate_only),
        pb.PutRoleResponse.FromString,
        result,
    )


def get_role(name: str) -> Operation[RoleDocument]:
    request = pb.GetRoleRequest(name=name)
    return admin_operation("GetRole", request, role_pb2.Role.FromString, role_document)


def list_roles(size: int, token: str) -> Operation[Page[RoleDocument]]:
    def result(answer: pb.ListRolesResponse) -> Page[RoleDocument]:
        return Page(tuple(map(role_document, answer.roles)), answer.next_page_token)

    request = pb.ListRolesRequest(page_size=size, page_token=token)
    return admin_operation("ListRoles", request, pb.ListRolesResponse.FromString, result)


def delete_role(name: str, allow_missing: bool) -> Operation[None]:
    request = pb.DeleteRoleRequest(name=name, allow_missing=allow_missing)
    return admin_operation("DeleteRole", request, Empty.FromString, lambda _: None)


def list_records(size: int, token: str, only: RecordFilter) -> Operation[Page[Record]]:
    def result(answer: pb.ListRecordsResponse) -> Page[Record]:
        return Page(tuple(map(_record, answer.records)), answer.next_page_token)

    fields = {
        name: timestamp(value, f"filter.{name}") if isinstance(value, datetime) else value
        for name, value in only.items()
    }
    request = pb.ListRecordsRequest(page_size=size, page_token=token)
    request.filter.CopyFrom(pb.RecordFilter(**fields))  # type: ignore[arg-type]
    return admin_operation("ListRecords", request, pb.ListRecordsResponse.FromString, result)


def get_record(serial_number: str) -> Operation[Record]:
    request = pb.GetRecordRequest(serial_number=serial_number)
    return admin_operation("GetRecord", request, pb.Record.FromString, _record)


def _record(answer: pb.Record) -> Record:
    revocation = answer.revocation if answer.HasField("revocation") else None
    return Record(
        serial_number=answer.serial_number,
        certificate_pem=answer.certificate,
        issuer=answer.issuer,
        role=answer.role,
        authenticator=answer.authenticator,
        caller=answer.caller,
        spiffe_id=answer.spiffe_id or None,
        subject=answer.subject,
        names=tuple(answer.names),
        not_before=moment(answer.not_before),
        not_after=moment(answer.not_after),
        create_time=moment(answer.create_time),
        request_id=answer.request_id,
        revocation_time=None if revocation is None else moment(revocation.revocation_time),
        revocation_reason=None if revocation is None else reason_of(revocation.reason),
    )
