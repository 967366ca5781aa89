"""The calls of AdminService on issuers as values, and what they return. No I/O in here."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from google.protobuf.message import Message

from meshmint.admin_operations import Page, admin_operation
from meshmint.operations import Operation, moment
from meshmint.v1 import admin_service_pb2 as pb

__all__ = ["Issuer", "PreparedIssuer", "Rotation"]

IssuerState = Literal["pending", "next", "active", "retired", "gone"]
RotationStep = Literal["none", "prepare", "import", "wait", "activate"]

_STATES: dict[int, IssuerState] = {
    pb.ISSUER_STATE_NEXT: "next",
    pb.ISSUER_STATE_ACTIVE: "active",
    pb.ISSUER_STATE_RETIRED: "retired",
    pb.ISSUER_STATE_GONE: "gone",
}
_STEPS: dict[int, RotationStep] = {
    pb.ROTATION_STEP_PREPARE: "prepare",
    pb.ROTATION_STEP_IMPORT: "import",
    pb.ROTATION_STEP_WAIT: "wait",
    pb.ROTATION_STEP_ACTIVATE: "activate",
}


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA certificate with its chain and where its key is.

    Attributes:
        name: Name, unique.
        state: ``pending``, ``next``, ``active``, ``retired`` or ``gone``.
        key_uri: Where the key is; never a secret.
        certificate_pem: The certificate; empty while pending.
        chain_pem: The certificates above it, root left out.
        trust_bundle_pem: The roots that it chains to.
        subject: Subject in RFC 4514 form.
        serial_number: Lower-case hexadecimal.
        not_before: Start of the validity, UTC; None while pending.
        not_after: End of the validity, UTC; None while pending.
        publish_time: Since when its roots are in the trust bundle, UTC; None if they are not.
        activate_time: Since when it signs, or did, UTC; None if it never has.
        retire_time: Since when it no longer signs, UTC; None if it has not retired.
    """

    name: str
    state: IssuerState
    key_uri: str
    certificate_pem: str = field(repr=False)
    chain_pem: tuple[str, ...] = field(repr=False)
    trust_bundle_pem: tuple[str, ...] = field(repr=False)
    subject: str
    serial_number: str
    not_before: datetime | None
    not_after: datetime | None
    publish_time: datetime | None = None
    activate_time: datetime | None = None
    retire_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class PreparedIssuer:
    """An issuer that waits for its certificate.

    Attributes:
        issuer: The issuer, ``pending``.
        csr_pem: What the CA above is to sign.
    """

    issuer: Issuer
    csr_pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rotation:
    """How far the succession of the active issuer is.

    Attributes:
        step: What comes next. ``none``: nothing before the due time; ``prepare``: make an
            issuer; ``import``: a CSR waits for its certificate; ``wait``: the next issuer is
            published, and not to sign yet; ``activate``: it is to sign now.
        description: The same in plain words, with the command to run.
        active: Name of the active issuer; empty without one.
        next: Name of the issuer that is pending or next; empty without one.
        is_automatic: Whether the service does the step by itself.
        due_time: When the step is due, or since when, UTC; None where only an operator can
            help.
        last_failure: Why the service's own last try failed; empty if it did not.
    """

    step: RotationStep
    description: str
    active: str
    next: str
    is_automatic: bool
    due_time: datetime | None
    last_failure: str


def list_issuers(size: int, token: str) -> Operation[Page[Issuer]]:
    def result(answer: pb.ListIssuersResponse) -> Page[Issuer]:
        return Page(tuple(map(_issuer, answer.issuers)), answer.next_page_token)

    request = pb.ListIssuersRequest(page_size=size, page_token=token)
    return admin_operation("ListIssuers", request, pb.ListIssuersResponse.FromString, result)


def get_issuer(name: str) -> Operation[Issuer]:
    return _of_issuer("GetIssuer", pb.GetIssuerRequest(name=name))


def get_rotation() -> Operation[Rotation]:
    return admin_operation(
        "GetRotation", pb.GetRotationRequest(), pb.Rotation.FromString, _rotation
    )


def prepare_issuer(name: str, algorithm: str, common_name: str) -> Operation[PreparedIssuer]:
    def result(answer: pb.PrepareIssuerResponse) -> PreparedIssuer:
        return PreparedIssuer(_issuer(answer.issuer), answer.csr)

    request = pb.PrepareIssuerRequest(name=name, algorithm=algorithm, common_name=common_name)
    return admin_operation("PrepareIssuer", request, pb.PrepareIssuerResponse.FromString, result)


def import_issuer(certificates: str, name: str) -> Operation[Issuer]:
    return _of_issuer("ImportIssuer", pb.ImportIssuerRequest(certificates=certificates, name=name))


def activate_issuer(name: str, at_once: bool) -> Operation[Issuer]:
    return _of_issuer("ActivateIssuer", pb.ActivateIssuerRequest(name=name, at_once=at_once))


def remove_issuer(name: str, at_once: bool) -> Operation[Issuer]:
    return _of_issuer("RemoveIssuer", pb.RemoveIssuerRequest(name=name, at_once=at_once))


def _of_issuer(call: str, request: Message) -> Operation[Issuer]:
    return admin_operation(call, request, pb.Issuer.FromString, _issuer)


def _issuer(answer: pb.Issuer) -> Issuer:
    return Issuer(
        name=answer.name,
        state=_STATES.get(answer.state, "pending"),
        key_uri=answer.key_uri,
        certificate_pem=answer.certificate,
        chain_pem=tuple(answer.chain),
        trust_bundle_pem=tuple(answer.trust_bundle),
        subject=answer.subject,
        serial_number=answer.serial_number,
        not_before=moment(answer.not_before) if answer.HasField("not_before") else None,
        not_after=moment(answer.not_after) if answer.HasField("not_after") else None,
        publish_time=moment(answer.publish_time) if answer.HasField("publish_time") else None,
        activate_time=moment(answer.activate_time) if answer.HasField("activate_time") else None,
        retire_time=moment(answer.retire_time) if answer.HasField("retire_time") else None,
    )


def _rotation(answer: pb.Rotation) -> Rotation:
    return Rotation(
        step=_STEPS.get(answer.step, "none"),
        description=answer.description,
        active=answer.active,
        next=answer.next,
        is_automatic=answer.automatic,
        due_time=moment(answer.due_time) if answer.HasField("due_time") else None,
        last_failure=answer.last_failure,
    )
