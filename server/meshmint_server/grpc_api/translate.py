"""Between protobuf and the domain's values. No decisions, only spelling.

What protobuf can hold and the domain cannot (a duration of 300,000 years) is
refused here, as INVALID_ARGUMENT with the field's path.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf import duration_pb2, json_format, timestamp_pb2
from meshmint.v1 import admin_service_pb2, role_pb2
from meshmint.v1 import certificate_service_pb2 as pb
from pydantic import BaseModel

from meshmint_server.errors import InvalidRequest, Violation
from meshmint_server.issuance import (
    IssuedJwtSvid,
    KnownCertificate,
    Retryable,
    RevocationReason,
    RevocationRequest,
    Revoked,
    read_certificate,
)
from meshmint_server.policy import (
    MOST_AUDIENCES,
    CertificateRequest,
    JwtSvidRequest,
    KeyAlgorithm,
    Names,
    OtherName,
    Role,
    Validity,
    parse_csr,
    parse_csr_der,
)
from meshmint_server.spiffe import InvalidSpiffeId, TrustDomain
from meshmint_server.store import RecordFilter, normal_serial_number

__all__ = [
    "issue_request",
    "pem_of",
    "record_filter",
    "record_message",
    "retryable",
    "revocation_request",
    "revoke_response",
    "role_document",
    "role_message",
    "sign_request",
    "timestamp",
]

_KEY_ALGORITHMS = {
    pb.KEY_ALGORITHM_EC_P256: KeyAlgorithm.EC_P256,
    pb.KEY_ALGORITHM_EC_P384: KeyAlgorithm.EC_P384,
    pb.KEY_ALGORITHM_EC_P521: KeyAlgorithm.EC_P521,
    pb.KEY_ALGORITHM_RSA_2048: KeyAlgorithm.RSA_2048,
    pb.KEY_ALGORITHM_RSA_3072: KeyAlgorithm.RSA_3072,
    pb.KEY_ALGORITHM_RSA_4096: KeyAlgorithm.RSA_4096,
    pb.KEY_ALGORITHM_ED25519: KeyAlgorithm.ED25519,
}

# More than any certificate holds: policy refuses so many, and need not be handed millions.
_MOST_NAMES = 2000
_EPOCH = datetime.fromtimestamp(0, UTC)
_SECOND = timedelta(seconds=1)

_ROLE_DURATIONS = ("ttl", "max_ttl", "not_before_duration")
_JWT_SVID_DURATIONS = ("ttl", "max_ttl")


def timestamp(moment: datetime) -> timestamp_pb2.Timestamp:
    """A moment, aware of its time zone, in protobuf's form."""
    seconds, rest = divmod(moment - _EPOCH, _SECOND)
    return timestamp_pb2.Timestamp(seconds=seconds, nanos=rest.microseconds * 1000)


def optional_trust_domain(name: str) -> TrustDomain | None:
    """A trust domain's name; None if it is empty.

    Raises:
        InvalidRequest: It is no trust domain's.
    """
    try:
        return TrustDomain(name) if name else None
    except InvalidSpiffeId as error:
        raise InvalidRequest(
            f"The trust domain cannot be read: {error}.",
            violations=[Violation("trust_domain", "Use a name such as 'other.example'.")],
        ) from None


def issue_request(request: pb.IssueRequest) -> CertificateRequest:
    """What an IssueRequest asks for.

    Raises:
        InvalidRequest: A value is out of range or unknown.
    """
    key_algorithm: KeyAlgorithm | None = None
    if request.key_algorithm != pb.KEY_ALGORITHM_UNSPECIFIED:
        key_algorithm = _KEY_ALGORITHMS.get(request.key_algorithm)
        if key_algorithm is None:
            raise _invalid("key_algorithm", f"{request.key_algorithm} is not a known KeyAlgorithm")
    return CertificateRequest(
        names=_names(request.names),
        validity=_validity(request.validity),
        key_algorithm=key_algorithm,
    )


def sign_request(request: pb.SignRequest) -> CertificateRequest:
    """What a SignRequest asks for.

    Raises:
        InvalidRequest: The CSR is missing or malformed, or a value is out of range.
    """
    match request.WhichOneof("csr"):
        case "csr_pem":
            csr = parse_csr(request.csr_pem)
        case "csr_der":
            csr = parse_csr_der(request.csr_der)
        case _:
            raise _invalid("csr_pem", "send a certificate signing request in csr_pem or csr_der")
    return CertificateRequest(
        names=_names(request.names), validity=_validity(request.validity), csr=csr
    )


def jwt_svid_request(request: pb.IssueJwtSvidRequest) -> JwtSvidRequest:
    """What an IssueJwtSvidRequest asks for.

    Raises:
        InvalidRequest: The lifetime is out of range.
    """
    return JwtSvidRequest(
        # One more than there may be: policy refuses so many, and need not see them all.
        audiences=tuple(request.audiences[: MOST_AUDIENCES + 1]),
        ttl=_timedelta(request.ttl, "ttl") if request.HasField("ttl") else None,
    )


def jwt_svid_response(issued: IssuedJwtSvid) -> pb.IssueJwtSvidResponse:
    """An issued JWT-SVID."""
    return pb.IssueJwtSvidResponse(
        token=issued.token,
        spiffe_id=issued.spiffe_id,
        issued_at=timestamp(issued.issued_at),
        expires_at=timestamp(issued.expires_at),
        role=issued.role,
        jwt_id=issued.jwt_id,
        warnings=issued.warnings,
    )


def retryable(request: pb.IssueRequest | pb.SignRequest) -> Retryable | None:
    """What the request is known by if it comes again, by whichever RPC; None without an id."""
    if not request.request_id:
        return None
    rest = type(request)()
    rest.CopyFrom(request)  # type: ignore[arg-type]
    rest.ClearField("request_id")
    kind = request.DESCRIPTOR.full_name
    return Retryable(request.request_id, kind, rest.SerializeToString(deterministic=True))


def revocation_request(request: pb.RevokeRequest) -> RevocationRequest:
    """What a RevokeRequest asks for.

    Raises:
        InvalidRequest: No certificate is named, or not in a form that can be read; or the
            reason is unknown.
    """
    try:
        reason = RevocationReason(request.reason)
    except ValueError:
        raise _invalid("reason", f"{request.reason} is not a known RevocationReason") from None
    match request.WhichOneof("target"):
        case "serial_number":
            target: str | x509.Certificate = normal_serial_number(request.serial_number)
        case "certificate":
            target = read_certificate(request.certificate)
        case _:
            raise _invalid("serial_number", "name the certificate by serial_number or certificate")
    return RevocationRequest(target, reason, request.proof_of_possession)


def revoke_response(revoked: Revoked) -> pb.RevokeResponse:
    """A revocation, with the reason that stands."""
    row = revoked.revocation
    return pb.RevokeResponse(
        serial_number=row.serial_number,
        issuer=row.issuer,
        revocation_time=timestamp(row.revoked_at),
        reason=_reason(row.reason),
        already_revoked=revoked.already_revoked,
    )


def _reason(code: int) -> pb.RevocationReason.ValueType:
    # The numbers of the API are those of RFC 5280.
    return pb.RevocationReason.ValueType(code)


def _names(names: pb.CertificateNames) -> Names:
    return Names(
        common_name=names.common_name,
        dns_names=tuple(names.dns_names[:_MOST_NAMES]),
        ip_addresses=tuple(names.ip_addresses[:_MOST_NAMES]),
        uris=tuple(names.uris[:_MOST_NAMES]),
        email_addresses=tuple(names.email_addresses[:_MOST_NAMES]),
        other_names=tuple(
            OtherName(name.type_id, name.value) for name in names.other_names[:_MOST_NAMES]
        ),
        subject_serial_number=names.subject_serial_number,
        user_ids=tuple(names.user_ids[:_MOST_NAMES]),
        exclude_common_name_from_sans=names.exclude_common_name_from_sans,
    )


def _validity(validity: pb.Validity) -> Validity:
    end = validity.WhichOneof("end")
    return Validity(
        ttl=_timedelta(validity.ttl, "validity.ttl") if end == "ttl" else None,
        not_after=(
            _datetime(validity.not_after, "validity.not_after") if end == "not_after" else None
        ),
        not_before=_optional_datetime(validity, "not_before", "validity.not_before"),
    )


def _timedelta(duration: duration_pb2.Duration, field: str) -> timedelta:
    try:
        return duration.ToTimedelta()
    except (OverflowError, ValueError):
        raise _invalid(field, "the duration is out of range") from None


def _datetime(moment: timestamp_pb2.Timestamp, field: str) -> datetime:
    try:
        return moment.ToDatetime(tzinfo=UTC)
    except (OverflowError, ValueError):
        raise _invalid(field, "the time is not between the years 1 and 9999") from None


def _optional_datetime(message: Any, name: str, field: str) -> datetime | None:
    return _datetime(getattr(message, name), field) if message.HasField(name) else None


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(
        f"The request is malformed: {field}: {description}.",
        violations=[Violation(field, description)],
    )


def role_document(role: role_pb2.Role) -> dict[str, object]:
    """A role as the document that `Role.from_document` reads."""
    try:
        document: dict[str, object] = json_format.MessageToDict(
            role, preserving_proto_field_name=True
        )
    except ValueError:
        raise _invalid("role", "a duration is out of range") from None
    if role.HasField("key_usage"):
        document["key_usage"] = list(role.key_usage.usages)
    return document


def role_message(role: Role) -> role_pb2.Role:
    """A role with every field spelled out, defaults too."""
    document = json.loads(role.model_dump_json(exclude_none=True))
    _spell_durations(document, role, _ROLE_DURATIONS)
    if role.jwt_svid is not None:
        _spell_durations(document["jwt_svid"], role.jwt_svid, _JWT_SVID_DURATIONS)
    document["key_usage"] = {"usages": list(role.key_usage)}
    message = role_pb2.Role()
    json_format.ParseDict(document, message)
    return message


def _spell_durations(document: dict[str, Any], values: BaseModel, names: Sequence[str]) -> None:
    """Writes durations as protobuf's JSON has them."""
    for name in names:
        document.pop(name, None)
        value: timedelta | None = getattr(values, name)
        if value is not None:
            document[name] = f"{value.total_seconds():.0f}s"


def record_message(known: KnownCertificate) -> admin_service_pb2.Record:
    """A record; the certificate only where the row has it."""
    row = known.record
    message = admin_service_pb2.Record(
        serial_number=row.serial_number,
        certificate=pem_of(row.certificate) if row.certificate else "",
        issuer=row.issuer,
        role=row.role,
        authenticator=row.authenticator,
        caller=row.caller,
        spiffe_id=row.spiffe_id or "",
        subject=row.subject,
        names=row.names,
        request_id=row.request_id,
    )
    message.not_before.FromDatetime(row.not_before)
    message.not_after.FromDatetime(row.not_after)
    message.create_time.FromDatetime(row.created_at)
    if known.revocation is not None:
        message.revocation.revocation_time.FromDatetime(known.revocation.revoked_at)
        message.revocation.reason = _reason(known.revocation.reason)
    return message


def record_filter(message: admin_service_pb2.RecordFilter) -> RecordFilter:
    """What to list; an empty string matches all."""
    return RecordFilter(
        role=message.role or None,
        caller=message.caller or None,
        authenticator=message.authenticator or None,
        spiffe_id=message.spiffe_id or None,
        issuer=message.issuer or None,
        name=message.name or None,
        created_from=_optional_datetime(message, "created_from", "filter.created_from"),
        created_before=_optional_datetime(message, "created_before", "filter.created_before"),
        expires_from=_optional_datetime(message, "expires_from", "filter.expires_from"),
        expires_before=_optional_datetime(message, "expires_before", "filter.expires_before"),
    )


def pem_of(der: bytes) -> str:
    """A certificate in PEM."""
    certificate = x509.load_der_x509_certificate(der)
    return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
