"""Issuers and their rotation in protobuf. No decisions, only spelling."""

from __future__ import annotations

from cryptography import x509
from meshmint.v1 import admin_service_pb2

from meshmint_server.authority import Rotation, RotationStep, describe_rotation
from meshmint_server.grpc_api.translate import pem_of
from meshmint_server.store import IssuerRow, IssuerState

__all__ = ["issuer_message", "rotation_message"]

_ISSUER_STATES = {
    IssuerState.PENDING: admin_service_pb2.ISSUER_STATE_PENDING,
    IssuerState.NEXT: admin_service_pb2.ISSUER_STATE_NEXT,
    IssuerState.ACTIVE: admin_service_pb2.ISSUER_STATE_ACTIVE,
    IssuerState.RETIRED: admin_service_pb2.ISSUER_STATE_RETIRED,
    IssuerState.GONE: admin_service_pb2.ISSUER_STATE_GONE,
}

_STEPS = {
    RotationStep.NONE: admin_service_pb2.ROTATION_STEP_NONE,
    RotationStep.PREPARE: admin_service_pb2.ROTATION_STEP_PREPARE,
    RotationStep.IMPORT: admin_service_pb2.ROTATION_STEP_IMPORT,
    RotationStep.WAIT: admin_service_pb2.ROTATION_STEP_WAIT,
    RotationStep.ACTIVATE: admin_service_pb2.ROTATION_STEP_ACTIVATE,
}


def issuer_message(row: IssuerRow) -> admin_service_pb2.Issuer:
    """An issuer, without anything secret: a row holds nothing that is."""
    message = admin_service_pb2.Issuer(
        name=row.name, state=_ISSUER_STATES[row.state], key_uri=row.key_uri
    )
    certificate = None if row.certificate is None else _readable(row.certificate)
    if row.certificate is not None and certificate is not None:
        message.certificate = pem_of(row.certificate)
        message.subject = certificate.subject.rfc4514_string()
        message.serial_number = f"{certificate.serial_number:x}"
        message.not_before.FromDatetime(certificate.not_valid_before_utc)
        message.not_after.FromDatetime(certificate.not_valid_after_utc)
    for field, moment in (
        (message.publish_time, row.published_at),
        (message.activate_time, row.activated_at),
        (message.retire_time, row.retired_at),
    ):
        if moment is not None:
            field.FromDatetime(moment)
    message.chain.extend(map(pem_of, row.chain))
    message.trust_bundle.extend(map(pem_of, row.roots))
    return message


def _readable(certificate: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(certificate)
    except ValueError:
        return None  # damaged: 'doctor' says so, and the others can still be listed


def rotation_message(rotation: Rotation) -> admin_service_pb2.Rotation:
    """How far the rotation is."""
    message = admin_service_pb2.Rotation(
        step=_STEPS[rotation.step],
        description=describe_rotation(rotation),
        active=rotation.active or "",
        next=rotation.next or "",
        automatic=rotation.is_automatic,
        last_failure=rotation.last_failure or "",
    )
    if rotation.due is not None:
        message.due_time.FromDatetime(rotation.due)
    return message
