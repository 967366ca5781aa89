"""Operators' RPCs: who may, and that what they change takes effect everywhere."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import json_format
from meshmint.v1 import admin_service_pb2 as admin_pb
from meshmint.v1 import certificate_service_pb2 as pb
from meshmint.v1 import role_pb2
from support.service import Service


def test_only_admins_may_administer(service: Service) -> None:
    # Nobody else is told either whether a request can be read.
    no_time = admin_pb.RecordFilter()
    no_time.created_from.seconds = 10**15
    calls = [
        (service.admin.PutRole, admin_pb.PutRoleRequest(role=role_pb2.Role(name="x"))),
        (service.admin.GetRole, admin_pb.GetRoleRequest(name="x")),
        (service.admin.ListRoles, admin_pb.ListRolesRequest()),
        (service.admin.DeleteRole, admin_pb.DeleteRoleRequest(name="x")),
        (service.admin.ListIssuers, admin_pb.ListIssuersRequest()),
        (service.admin.GetIssuer, admin_pb.GetIssuerRequest(name="x")),
        (service.admin.GetRotation, admin_pb.GetRotationRequest()),
        (service.admin.PrepareIssuer, admin_pb.PrepareIssuerRequest()),
        (service.admin.ImportIssuer, admin_pb.ImportIssuerRequest()),
        (service.admin.ActivateIssuer, admin_pb.ActivateIssuerRequest()),
        (service.admin.RemoveIssuer, admin_pb.RemoveIssuerRequest(name="issuer-1")),
        (service.admin.ListRecords, admin_pb.ListRecordsRequest()),
        (service.admin.ListRecords, admin_pb.ListRecordsRequest(filter=no_time)),
        (service.admin.ListRecords, admin_pb.ListRecordsRequest(page_token="x")),
        (service.admin.GetRecord, admin_pb.GetRecordRequest(serial_number="1")),
        (service.admin.GetRecord, admin_pb.GetRecordRequest(serial_number="no number")),
    ]
    for call, request in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=10, metadata=service.metadata(service.token()))
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def put(service: Service, role: role_pb2.Role, **options: bool) -> admin_pb.PutRoleResponse:
    return service.admin.PutRole(
        admin_pb.PutRoleRequest(role=role, **options), timeout=10, metadata=service.admin_metadata
    )


def get(service: Service, name: str) -> role_pb2.Role:
    return service.admin.GetRole(
        admin_pb.GetRoleRequest(name=name), timeout=10, metadata=service.admin_metadata
    )


def test_role_is_created_updated_unchanged_and_deleted(service: Service) -> None:
    name = service.unique_name()
    role = role_pb2.Role(name=name, spiffe="own", callers=[role_pb2.CallerMatcher(namespace="*")])
    role.ttl.FromSeconds(3600)

    preview = put(service, role, validate_only=True)
    assert preview.change == admin_pb.ROLE_CHANGE_CREATED
    with pytest.raises(grpc.RpcError) as caught:
        get(service, name)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND

    assert put(service, role).change == admin_pb.ROLE_CHANGE_CREATED
    assert put(service, role).change == admin_pb.ROLE_CHANGE_UNCHANGED
    role.ttl.FromSeconds(1800)
    assert put(service, role).change == admin_pb.ROLE_CHANGE_UPDATED
    stored = get(service, name)
    assert stored.ttl.seconds == 1800
    assert stored.spiffe == "own"

    delete = admin_pb.DeleteRoleRequest(name=name)
    service.admin.DeleteRole(delete, timeout=10, metadata=service.admin_metadata)
    with pytest.raises(grpc.RpcError) as caught:
        service.admin.DeleteRole(delete, timeout=10, metadata=service.admin_metadata)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    delete.allow_missing = True
    service.admin.DeleteRole(delete, timeout=10, metadata=service.admin_metadata)


def test_role_that_was_read_can_be_put_back_unchanged(service: Service) -> None:
    name = service.put_role(
        {
            "spiffe": "matching",
            "callers": [{"namespace": "a*", "attributes": {"claims.team": "x"}}],
            "ttl": "90m",
            "not_before_duration": "10s",
            "allowed_uri_sans": ["spiffe://mesh.example/*"],
            "policy_identifiers": [{"oid": "1.3.6.1.4.1.99999.1", "cps": "https://cps.example/"}],
            "organization": ["Example"],
            "key_usage": ["DigitalSignature"],
            "no_store": True,
        }
    )
    role = get(service, name)
    assert put(service, role).change == admin_pb.ROLE_CHANGE_UNCHANGED, json_format.MessageToJson(
        role
    )


def test_role_that_nobody_can_use_is_accepted_with_a_warning(service: Service) -> None:
    response = put(service, role_pb2.Role(name=service.unique_name(), spiffe="own"))
    assert any("callers" in warning for warning in response.warnings)


def test_role_takes_effect_in_every_worker_without_a_restart(service: Service) -> None:
    assert service.workers > 1
    before = service.worker_pids()
    service.wait_until_everywhere(service.put_role({"spiffe": "own", "key_type": "ec"}))
    assert service.worker_pids() == before


def test_roles_are_listed_in_pages(service: Service) -> None:
    mine = {service.put_role({"spiffe": "own"}) for _ in range(5)}
    seen: list[str] = []
    token = ""
    while True:
        page = service.admin.ListRoles(
            admin_pb.ListRolesRequest(page_size=2, page_token=token),
            timeout=10, metadata=service.admin_metadata,
        )  # fmt: skip
        assert len(page.roles) <= 2
        seen += [role.name for role in page.roles]
        token = page.next_page_token
        if not token:
            break
    assert seen == sorted(seen)
    assert len(seen) == len(set(seen))
    assert mine <= set(seen)


def test_records_are_filtered_and_paged_newest_first(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    serials = [service.issue(pb.IssueRequest(role=role)).serial_number for _ in range(5)]
    seen: list[str] = []
    token = ""
    while True:
        page = service.admin.ListRecords(
            admin_pb.ListRecordsRequest(
                filter=admin_pb.RecordFilter(role=role), page_size=2, page_token=token
            ),
            timeout=10, metadata=service.admin_metadata,
        )  # fmt: skip
        seen += [record.serial_number for record in page.records]
        assert all(not record.certificate for record in page.records)
        token = page.next_page_token
        if not token:
            break
    assert seen == serials[::-1]


def test_record_is_found_by_any_of_its_names(service: Service) -> None:
    role = service.put_role(
        {"spiffe": "none", "allow_any_name": True, "enforce_hostnames": False, "key_type": "ec"}
    )
    name = f"{role}.example.org"
    names = pb.CertificateNames(
        common_name=f"The {role}", dns_names=[name], exclude_common_name_from_sans=True
    )
    serial = service.issue(pb.IssueRequest(role=role, names=names)).serial_number
    for searched in (name, name.upper(), f"The {role}"):
        assert [r.serial_number for r in service.list_records(name=searched)] == [serial]
    assert service.list_records(name=name, caller="somebody else") == []


@pytest.mark.parametrize("token", ["garbage", "AAAA", "é", "x" * 5000])
def test_foreign_page_token_is_an_invalid_argument(service: Service, token: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        service.admin.ListRecords(
            admin_pb.ListRecordsRequest(page_token=token),
            timeout=10, metadata=service.admin_metadata,
        )  # fmt: skip
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_record_is_found_by_any_spelling_of_its_serial(service: Service) -> None:
    role = service.put_role({"spiffe": "own", "key_type": "ec"})
    serial = service.issue(pb.IssueRequest(role=role)).serial_number
    digits = serial.zfill(len(serial) + len(serial) % 2).upper()
    spelled = ":".join(digits[i : i + 2] for i in range(0, len(digits), 2))
    assert service.get_record(spelled).serial_number == serial


def test_issuer_is_shown_without_a_secret(service: Service) -> None:
    issuers = service.admin.ListIssuers(
        admin_pb.ListIssuersRequest(), timeout=10, metadata=service.admin_metadata
    ).issuers
    assert len(issuers) == 1
    issuer = service.admin.GetIssuer(
        admin_pb.GetIssuerRequest(name=issuers[0].name), timeout=10, metadata=service.admin_metadata
    )
    assert issuer.state == admin_pb.ISSUER_STATE_ACTIVE
    assert issuer.key_uri.startswith("pkcs11:")
    assert "pin" not in issuer.key_uri
    assert "module" not in issuer.key_uri
    assert issuer.certificate.startswith("-----BEGIN CERTIFICATE-----")
